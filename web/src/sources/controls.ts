// Controls that several panels share: over which heads, and which token of a word.

import { percent, show, times } from "../app.ts";
import { arrow, name } from "../bidi.ts";
import { choice, el } from "../dom.ts";
import type { SourceApp } from "./app.ts";
import type { Cross, Over } from "./data.ts";

/** Over which heads attention is shown. */
export function overChoice(app: SourceApp): HTMLElement {
  const { layer, head, over } = app.state;
  const { aligning } = app.cross.data;
  const names: [Over, string][] = [
    ...(aligning.length ? ([["aligning", aligning.length === 1 ? "Aligning head" : "Aligning heads"]] as [Over, string][]) : []),
    ["head", `Head ${layer}.${head}`],
    ["layer", `Layer ${layer}, mean`],
  ];
  return choice("Over which heads", names, over, (over) => app.set({ over }));
}

/** The tokens of the selected word, where it has several; null otherwise. */
export function pieceChoice(app: SourceApp): HTMLElement | null {
  const { word, piece } = app.state;
  if (word === null) return null;
  const { target } = app.cross;
  const places = target.units[word];
  if (places.length < 2) return null;
  const names: [string, string][] = [["", "Word"], ...places.map((place, at): [string, string] => [String(at), name(target.spelled(place).trim() || "·")])];
  return choice("Which token of the word", names, piece === null ? "" : String(piece), (value) => app.set({ piece: value === "" ? null : Number(value) }));
}

/** Lines about a word and a part of the source, for the tip and for screen readers. */
export function pairLines(app: SourceApp, word: number, part: number): string[] {
  const weight = app.cross.row(word, app.heads, word === app.word ? app.piece : null)[part];
  const even = app.cross.even(part);
  return [arrow(app.cross.words.units[word], app.cross.name(part)), `${show(weight)}  (even ${show(even)}, ${times(weight, even)})`, app.where];
}

/** What the selected word looks at most, in a sentence with its numbers. */
export function saying(app: SourceApp): (Node | string)[] {
  const { cross } = app;
  const strong = (text: string) => el("bdi", { class: "strong" }, text);
  if (app.part !== null && cross.source) {
    const column = cross.column(app.part, app.heads);
    const word = column.reduce((best, weight, at) => (weight > column[best] ? at : best), 0);
    return [strong(cross.words.units[word]), " takes ", el("b", {}, percent(column[word])), " of its attention to the source from ", strong(cross.name(app.part)), `, the most of all words (${app.where}; an even share would be ${percent(cross.even(app.part))}).`];
  }
  if (app.word === null) return ["What each written word looked at in the source. ", el("b", {}, "Click a word.")];
  const row = cross.row(app.word, app.heads, app.piece);
  const part = cross.best(app.word, app.heads);
  const what = strong(cross.words.units[app.word]);
  if (!cross.source) {
    const [start, end] = cross.data.sound!.times[app.word];
    return [what, " is said from ", el("b", {}, `${start.toFixed(2)} to ${end.toFixed(2)} s`), `, as the alignment heads place it; ${percent(within(row, cross, start, end))} of its attention (${app.where}) falls on that time.`];
  }
  return [what, " takes ", el("b", {}, percent(row[part])), " of its attention to the source from ", strong(cross.name(part)), ` (${app.where}), where an even share would be ${percent(cross.even(part))}.`];
}

/** The share of a row that falls between two times. */
function within(row: Float32Array, cross: Cross, start: number, end: number): number {
  return row.reduce((sum, weight, part) => {
    const [from, to] = cross.secondsOf(part);
    return sum + (to > start && from < end ? weight : 0);
  }, 0);
}
