// The state of the page, and the panels that are updated when it changes.

import type { Theme } from "./colour.ts";
import type { Page } from "./data.ts";
import { keepFocus } from "./dom.ts";
import { leading } from "./ranking.ts";
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
  zoom: string | null; // the part of a long text's map that is in view: first query, first key, tokens along a side
  veil: Veil; // how weights are shown over a picture
  theme: Theme;
}

/** Weights over a picture: it is lit where they are large, tinted by them, or bare. */
export type Veil = "light" | "colours" | "none";

export type Changed = ReadonlySet<keyof State>;

export interface Panel {
  element: HTMLElement;
  update(changed: Changed): void;
  zooms?: boolean; // whether the part of a map that is in view matters to it
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
    const zoomed = changed.size === 1 && changed.has("zoom");
    const panels = zoomed ? this.panels.filter((panel) => panel.zooms) : this.panels;
    keepFocus(() => panels.forEach((panel) => panel.update(changed)));
  }

  /** Call the panels' `shown`, once they are on the page. */
  shown(): void {
    for (const panel of this.panels) panel.shown?.();
  }

  /** Announce a text to screen readers. */
  say(text: string): void {
    this.status.textContent = text;
  }

  /** The upper end of the colour scale: the whole attention, or the largest cell of a head that has its own scale. */
  high(layer: number, head: number): number {
    const { hide, own } = this.state;
    if (!own) return 1;
    const key = `${hide} ${layer}.${head}`;
    const known = this.highs.get(key);
    if (known !== undefined) return known;
    const high = Math.max(...this.readings.map((reading) => reading.highest(hide, [layer, head])));
    this.highs.set(key, high);
    return high;
  }

  /** The unit that is followed in another text: the same word, if both texts have it. */
  partner(unit: number, text: number): number | null {
    if (text === this.state.text) return unit;
    const pair = this.page.comparison?.pairs.find((pair) => pair[this.state.text] === unit);
    return pair ? pair[text] : null;
  }

  /** Select a word, with the partner and the head of its leading relation. */
  follow(text: number, unit: number): void {
    const found = leading(this.readings[text], unit);
    const to = found && { layer: found.layer, head: found.head, other: this.readings[text].units[found.other][0] };
    this.set({ text, token: this.readings[text].units[unit][0], other: null, direction: "from", scope: "head", grid: "maps", ...to });
  }
}

/** Where the page opens: the leading relation of the chosen word that has the most excess. */
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
    zoom: null,
    veil: "light",
    theme,
  };
  const [reading] = Reading.all(page);
  if (page.pictures?.[0].before) return { ...state, token: 0, layer: page.model.layers - 1, scope: "layer" }; // the class token
  let best = -Infinity;
  for (const word of reading.data.chosen) {
    const found = leading(reading, word);
    if (!found) continue;
    const score = found.weight - found.usual + (reading.content.has(found.other) ? 1 : 0);
    if (score <= best) continue;
    best = score;
    const { layer, head } = found;
    Object.assign(state, { layer, head, token: reading.units[word][0], other: reading.units[found.other][0] });
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

/** A share of attention in per cent. */
export function percent(value: number): string {
  const part = 100 * value;
  return `${part >= 10 || part === 0 ? part.toFixed(0) : part >= 1 ? part.toFixed(1) : Number(part.toPrecision(2))}\u00a0%`;
}

export const times = (value: number, base: number): string => {
  const ratio = value / base;
  const digits = ratio < 10 ? 1 : 0;
  return base > 0 ? `${ratio.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits })}×` : "";
};
