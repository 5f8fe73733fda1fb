// The state of the page of an encoder-decoder, and its form in the address.

import type { Theme } from "../colour.ts";
import type { Page } from "../data.ts";
import { type ChangedOf, type PanelOf, Store } from "../store.ts";
import type { Cross, Over } from "./data.ts";

export type View = "cross" | "decoder" | "encoder";

export interface State {
  view: View;
  word: number | null; // of the target
  piece: number | null; // one token of it
  part: number | null; // of the source, whose words are shown
  over: Over;
  layer: number;
  head: number;
  theme: Theme;
}

export type Changed = ChangedOf<keyof State | "hover">;
export type Panel = PanelOf<keyof State | "hover">;

export class SourceApp extends Store<State, "hover"> {
  hover: { word: number | null; part: number | null } = { word: null, part: null };

  constructor(
    readonly page: Page,
    readonly cross: Cross,
    state: State,
    status: HTMLElement,
    changed: () => void,
  ) {
    super(state, status, changed);
  }

  get modelName(): string {
    return this.page.model.name;
  }

  override set(patch: Partial<State>): void {
    const word = patch.word === undefined ? this.state.word : patch.word;
    super.set(word !== this.state.word && !("piece" in patch) ? { ...patch, piece: null } : patch);
  }

  /** Show a word or a part of the source while the pointer or the focus is on it. */
  preview(word: number | null, part: number | null = null): void {
    if (this.hover.word === word && this.hover.part === part) return;
    this.hover = { word, part };
    this.panels.forEach((panel) => panel.update(new Set(["hover"])));
  }

  /** The word whose attention is shown: the one under the pointer, else the selected one. */
  get word(): number | null {
    return this.hover.word ?? (this.hover.part === null ? this.state.word : null);
  }

  /** The part of the source whose words are shown. */
  get part(): number | null {
    return this.hover.part ?? (this.hover.word === null ? this.state.part : null);
  }

  get piece(): number | null {
    return this.word === this.state.word ? this.state.piece : null;
  }

  /** The heads whose mean is shown. */
  get heads(): number[] {
    const { over, layer, head } = this.state;
    return this.cross.headsOf(over, layer, head);
  }

  /** Which heads these are, in words. */
  get where(): string {
    const { over, layer, head } = this.state;
    if (over === "head") return `head ${layer}.${head}`;
    if (over === "layer") return `layer ${layer}, mean over its heads`;
    return this.heads.length === 1 ? `head ${this.nameOf(this.heads[0])}, which aligns` : `mean of ${this.heads.length} heads that align`;
  }

  nameOf(place: number): string {
    const { heads } = this.cross.data;
    return `${Math.floor(place / heads)}.${place % heads}`;
  }

  select(word: number | null): void {
    this.set({ word, part: null });
  }

  selectPart(part: number | null): void {
    this.set({ part, word: null, piece: null });
  }
}

/** Where the page opens: the word that the source explains most, through the heads that align. */
export function opening(cross: Cross, theme: Theme): State {
  const { aligning, heads, kept } = cross.data;
  const place = aligning.find((place) => cross.has(place)) ?? kept[0] ?? 0;
  const state: State = { view: "cross", word: null, piece: null, part: null, over: aligning.length ? "aligning" : "head", layer: Math.floor(place / heads), head: place % heads, theme };
  const over = cross.headsOf(state.over, state.layer, state.head);
  const { content } = cross.target.data.words;
  let most = -1;
  for (const word of content.length ? content : cross.words.units.keys()) {
    const row = cross.row(word, over);
    const best = row[cross.best(word, over)];
    if (best > most) [most, state.word] = [best, word];
  }
  return state;
}

/** The state as the address has it, without the theme. */
export function address(state: State): Record<string, string> {
  const text = (value: number | null) => (value === null ? "" : String(value));
  return {
    view: state.view === "cross" ? "" : state.view,
    word: text(state.word),
    piece: text(state.piece),
    part: text(state.part),
    over: state.over,
    cross: `${state.layer}.${state.head}`,
  };
}

/** The state that an address asks for; what it says wrongly, or does not say, is as at the opening. */
export function fromAddress(cross: Cross, given: Map<string, string>, opened: State): State {
  const state = { ...opened };
  const number = (key: string, count: number): number | null => {
    const value = given.get(key);
    return value !== undefined && /^\d+$/.test(value) && Number(value) < count ? Number(value) : null;
  };
  if (["word", "part", "over", "cross"].some((key) => given.has(key))) {
    state.part = number("part", cross.parts);
    state.word = state.part === null ? number("word", cross.count) : null;
    state.piece = state.word === null ? null : number("piece", cross.target.units[state.word].length);
  }
  const over = given.get("over");
  if (over === "head" || over === "layer" || (over === "aligning" && cross.data.aligning.length)) state.over = over;
  const [layer, head] = /^(\d+)\.(\d+)$/.exec(given.get("cross") ?? "")?.slice(1).map(Number) ?? [];
  if (head < cross.data.heads && cross.has(layer * cross.data.heads + head)) Object.assign(state, { layer, head });
  const view = given.get("view");
  if (view === "encoder" && cross.data.encoder) state.view = view;
  if (view === "decoder" && hasDecoder(cross.page)) state.view = view;
  const theme = given.get("theme");
  if (theme === "dark" || theme === "light") state.theme = theme;
  return state;
}

/** Whether the decoder's attention to its own words was observed. */
export const hasDecoder = (page: Page): boolean => page.readings[0].map.shares.shape[0] > 0;
