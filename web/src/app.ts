// The state of the page, and the panels that are updated when it changes.

import type { Theme } from "./colour.ts";
import type { Page } from "./data.ts";
import { keepFocus } from "./dom.ts";
import { type Direction, Reading, type Scope } from "./reading.ts";

export interface State {
  text: number;
  layer: number;
  head: number;
  token: number | null; // the token whose attention is shown
  other: number | null; // its partner, if one was picked
  direction: Direction;
  scope: Scope;
  hide: boolean; // leave out special tokens and sinks
  own: boolean; // each head has its own colour scale
  grid: "maps" | "pair";
  shape: "map" | "lines"; // how the large head is drawn
  theme: Theme;
}

export type Changed = ReadonlySet<keyof State>;

export interface Panel {
  element: HTMLElement;
  update(changed: Changed): void;
  shown?(): void; // called once, when the panel is on the page and has a size
}

/** Whether any of these parts of the state changed. */
export const any = (changed: Changed, ...keys: (keyof State)[]): boolean => keys.some((key) => changed.has(key));

export class App {
  readonly readings: Reading[];
  private panels: Panel[] = [];
  private readonly status: HTMLElement;
  private highs = new Map<string, number>();

  constructor(
    readonly page: Page,
    public state: State,
    status: HTMLElement,
  ) {
    this.readings = Reading.all(page);
    this.status = status;
  }

  get reading(): Reading {
    return this.readings[this.state.text];
  }

  add(panel: Panel): HTMLElement {
    this.panels.push(panel);
    return panel.element;
  }

  set(patch: Partial<State>): void {
    const changed = new Set<keyof State>();
    for (const key of Object.keys(patch) as (keyof State)[])
      if (this.state[key] !== patch[key]) changed.add(key);
    if (!changed.size) return;
    this.state = { ...this.state, ...patch };
    keepFocus(() => this.panels.forEach((panel) => panel.update(changed)));
  }

  /** Call the panels' `shown`, once they are on the page. */
  shown(): void {
    for (const panel of this.panels) panel.shown?.();
  }

  /** Announce a text to screen readers. */
  say(text: string): void {
    this.status.textContent = text;
  }

  /** The upper end of the colour scale of a head's map. */
  high(layer: number, head: number, reading = this.reading): number {
    const { hide, own } = this.state;
    const key = `${this.readings.indexOf(reading)} ${hide} ${own ? `${layer}.${head}` : ""}`;
    const known = this.highs.get(key);
    if (known !== undefined) return known;
    const high = reading.highest(hide, own ? [layer, head] : undefined);
    this.highs.set(key, high);
    return high;
  }

  /** Show another text: the shared word stays selected, if there is one. */
  showText(text: number): void {
    const { token } = this.state;
    const unit = token === null ? null : this.reading.unitOf[token];
    const pair = this.page.comparison?.pairs.find((pair) => pair[this.state.text] === unit);
    const next = this.readings[text];
    const word = pair ? pair[text] : next.data.chosen[0];
    this.set({ text, token: word === undefined ? null : next.units[word][0], other: null, grid: "maps" });
  }
}

/** Where the page opens: the strongest relation of the first word that matters. */
export function opening(page: Page, theme: Theme): State {
  const state: State = {
    text: 0,
    layer: 0,
    head: 0,
    token: null,
    other: null,
    direction: "from",
    scope: "head",
    hide: false,
    own: false,
    grid: "maps",
    shape: "map",
    theme,
  };
  const reading = Reading.all(page)[0];
  let best = 0;
  for (const word of reading.data.chosen)
    for (const found of reading.strongest(word, "from", { special: false, most: 20 })) {
      // Neighbours lead nearly every list, by heads that look at a fixed place: words with content say more.
      const score = found.weight + (reading.content.has(found.other) ? 1 : 0);
      if (score <= best) continue;
      best = score;
      Object.assign(state, { layer: found.layer, head: found.head, token: reading.units[word][0] });
      state.other = reading.units[found.other][0];
    }
  if (state.token === null && reading.length) state.token = reading.data.chosen.length ? reading.units[reading.data.chosen[0]][0] : 0;
  return state;
}

/** A number for people: three digits after the point, and no more than there are. */
export function show(value: number): string {
  if (!Number.isFinite(value)) return "–";
  if (value !== 0 && Math.abs(value) < 0.01) return Math.abs(value) < 1e-5 ? "<0.00001" : String(Number(value.toPrecision(2)));
  return Math.abs(value) >= 10 ? value.toFixed(1) : value.toFixed(3);
}

export const times = (value: number, even: number): string =>
  even > 0 ? `${(value / even).toLocaleString("en", { maximumFractionDigits: value / even < 10 ? 1 : 0, minimumFractionDigits: value / even < 10 ? 1 : 0 })}×` : "";
