// The state in the address: a link opens the page as it was.

import type { App, State } from "./app.ts";
import type { Page } from "./data.ts";

const KEYS = ["text", "token", "other", "layer", "head", "direction", "scope", "hide", "own", "grid", "shape", "zoom", "veil", "theme"] as const;
const WORDS: Partial<Record<keyof State, readonly string[]>> = {
  direction: ["from", "to"],
  scope: ["head", "layer", "all"],
  grid: ["maps", "pair"],
  shape: ["map", "lines"],
  veil: ["light", "colours", "none"],
  theme: ["light", "dark"],
};

/** The state as the part of an address behind `#`; `theme` only if it was chosen. */
export function toHash(state: State, theme: boolean): string {
  const parts = KEYS.filter((key) => key !== "theme" || theme).flatMap((key) => {
    const value = state[key];
    if (value === null || value === false) return [];
    return [`${key}=${value === true ? 1 : value}`];
  });
  return "#" + parts.join("&");
}

/** What an address says of the state; what it says wrongly is left out. */
export function fromHash(hash: string, page: Page): Partial<State> {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  if (![...given.keys()].some((key) => (KEYS as readonly string[]).includes(key))) return {};
  const number = (key: string, count: number): number | null => {
    const value = given.get(key);
    return value !== null && /^\d+$/.test(value) && Number(value) < count ? Number(value) : null;
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
  const zoom = given.get("zoom");
  patch.zoom = zoom !== null && /^\d+\.\d+\.\d+$/.test(zoom) ? zoom : null;
  for (const [key, count] of [["layer", page.model.layers], ["head", page.model.heads]] as const)
    if (number(key, count) !== null) patch[key] = number(key, count);
  for (const [key, words] of Object.entries(WORDS)) if (words.includes(given.get(key) ?? "")) patch[key] = given.get(key);
  return patch as Partial<State>;
}

/** Keep the address in step with the state, and follow addresses that are opened. */
export function follow(app: App, themeChosen: () => boolean): void {
  let written = location.hash;
  let waiting = 0;
  app.add({
    element: document.createElement("span"),
    zooms: true,
    update() {
      clearTimeout(waiting);
      waiting = window.setTimeout(() => {
        written = toHash(app.state, themeChosen());
        try {
          history.replaceState(null, "", written);
        } catch {
          // A page in a frame of its own origin (a notebook's output) has no address to write to.
        }
      }, 120); // browsers refuse more than a few of these a second
    },
  });
  addEventListener("hashchange", () => {
    if (location.hash !== written) app.set(fromHash(location.hash, app.page));
  });
}
