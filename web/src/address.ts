// The state of the page of a text, as its address has it.

import type { State } from "./app.ts";
import type { Page } from "./data.ts";

const KEYS = ["text", "token", "other", "layer", "head", "direction", "scope", "hide", "own", "grid", "shape", "zoom", "veil"] as const;
const WORDS: Partial<Record<keyof State, readonly string[]>> = {
  direction: ["from", "to"],
  scope: ["head", "layer", "all"],
  grid: ["maps", "pair"],
  shape: ["map", "lines"],
  veil: ["light", "colours", "none"],
  theme: ["light", "dark"],
};

/** The state as the address has it, without the theme. */
export function address(state: State): Record<string, string> {
  const said = KEYS.map((key) => [key, state[key]] as const).filter(([, value]) => value !== null && value !== false);
  return Object.fromEntries(said.map(([key, value]) => [key, value === true ? "1" : String(value)]));
}

/** What an address says of the state; what it says wrongly is left out. */
export function fromAddress(given: Map<string, string>, page: Page): Partial<State> {
  if (![...KEYS, "theme"].some((key) => given.has(key))) return {};
  const number = (key: string, count: number): number | null => {
    const value = given.get(key);
    return value !== undefined && /^\d+$/.test(value) && Number(value) < count ? Number(value) : null;
  };
  const text = number("text", page.readings.length) ?? 0;
  const length = page.readings[text].tokens.text.length;
  const patch: Record<string, unknown> = {
    text,
    token: number("token", length),
    other: number("other", length),
    hide: given.get("hide") === "1",
    own: given.get("own") === "1",
  };
  const zoom = given.get("zoom") ?? "";
  patch.zoom = /^\d+\.\d+\.\d+$/.test(zoom) ? zoom : null;
  for (const [key, count] of [["layer", page.model.layers], ["head", page.model.heads]] as const)
    if (number(key, count) !== null) patch[key] = number(key, count);
  for (const [key, words] of Object.entries(WORDS)) if (words.includes(given.get(key) ?? "")) patch[key] = given.get(key);
  return patch as Partial<State>;
}
