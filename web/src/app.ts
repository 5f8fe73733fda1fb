// The state of the page of a text or a picture.

import type { Theme } from "./colour.ts";
import type { Page } from "./data.ts";
import { leading } from "./ranking.ts";
import { type Direction, Reading, type Scope } from "./reading.ts";
import { type ChangedOf, type PanelOf, Store } from "./store.ts";

export { any } from "./store.ts";

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

export type Changed = ChangedOf<keyof State>;

export interface Panel extends PanelOf<keyof State> {
  zooms?: boolean; // whether the part of a map that is in view matters to it
}

export class App extends Store<State> {
  readonly readings: Reading[];
  private highs = new Map<string, number>();

  constructor(
    readonly page: Page,
    state: State,
    status: HTMLElement,
    changed: (state: State) => void,
  ) {
    super(state, status, changed);
    this.readings = Reading.all(page);
  }

  get modelName(): string {
    return this.page.model.name;
  }

  get reading(): Reading {
    return this.readings[this.state.text];
  }

  protected override following(changed: Changed): Panel[] {
    const panels: Panel[] = this.panels;
    return changed.size === 1 && changed.has("zoom") ? panels.filter((panel) => panel.zooms) : panels;
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
