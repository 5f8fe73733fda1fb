// An atlas: what was measured of every head, and what follows from it.

import { range } from "../reading.ts";
import type { AtlasData, Measure } from "./data.ts";

export interface Held {
  role: string;
  measure: number;
}

export interface Example {
  tokens: string[];
  text: number;
  query: number;
  key: number;
  weight: number;
}

export type Shown = "here" | "other" | "difference";

export class Atlas {
  readonly layers: number;
  readonly heads: number;
  readonly count: number;
  readonly roles: string[]; // that some head holds, the most frequent first
  readonly letters: Map<string, string>; // of each role, for the cells of the grid
  private readonly held: { here: Held[][]; other: Held[][] };
  private readonly sinkHeads: Set<number>;
  private readonly examplesOf: Map<number, number[]>; // rows of the table, of each head
  private readonly similarOf: Map<number, number[]>;

  constructor(readonly data: AtlasData) {
    ({ layers: this.layers, heads: this.heads } = data.model);
    this.count = this.layers * this.heads;
    this.held = { here: range(this.count).map(() => []), other: range(this.count).map(() => []) };
    for (const { head, role, measure, other } of data.roles) this.held[other ? "other" : "here"][head].push({ role, measure });
    const frequency = new Map<string, number>();
    for (const { role } of data.roles) frequency.set(role, (frequency.get(role) ?? 0) + 1);
    this.roles = [...frequency.keys()].sort((a, b) => frequency.get(b)! - frequency.get(a)! || (a < b ? -1 : 1));
    this.letters = abbreviate(this.roles);
    this.sinkHeads = new Set(data.sink?.heads);
    this.examplesOf = rowsByHead(data.examples?.head.values);
    this.similarOf = rowsByHead(data.similar?.head.values);
  }

  /** The name of a head: its layer and its number in the layer, both from 0. */
  name(place: number): string {
    return `${Math.floor(place / this.heads)}.${place % this.heads}`;
  }

  /** The place of a head of this name, or null. */
  place(name: string): number | null {
    const found = /^(\d+)\.(\d+)$/.exec(name);
    if (!found || Number(found[1]) >= this.layers || Number(found[2]) >= this.heads) return null;
    return Number(found[1]) * this.heads + Number(found[2]);
  }

  rolesOf(place: number, shown: Shown = "here"): Held[] {
    return this.held[shown === "other" ? "other" : "here"][place];
  }

  /** How many heads hold a role. */
  holders(role: string): number {
    return this.held.here.filter((held) => held.some((one) => one.role === role)).length;
  }

  /** How many heads have a sink; null where it was not measured. */
  sinks(): number | null {
    return this.data.sink && this.sinkHeads.size;
  }

  sinkMeasure(): Measure | null {
    return this.data.sink && this.data.measures[this.data.sink.measure];
  }

  isSink(place: number): boolean {
    return this.sinkHeads.has(place);
  }

  /** The scores of a measure over all texts, here, in the other atlas, or the change from here to there. */
  scores(measure: Measure, shown: Shown): Float32Array {
    const [here, there] = [measure.total.score.values, measure.other?.score.values];
    if (shown === "here" || !there) return here;
    return shown === "other" ? there : here.map((value, place) => there[place] - value);
  }

  /** The strongest examples of a head, the strongest first. */
  examples(place: number): Example[] {
    return (this.examplesOf.get(place) ?? []).map((row) => this.example(row));
  }

  private example(row: number): Example {
    const { vocabulary, tokens, starts, window, text, query, key, weight } = this.data.examples!;
    const [start, end] = [0, 1].map((next) => starts.values[window.values[row] + next]);
    return {
      tokens: Array.from(tokens.values.subarray(start, end), (id) => vocabulary[id]),
      text: text.values[row],
      query: query.values[row],
      key: key.values[row],
      weight: weight.values[row],
    };
  }

  /** The heads most like a head, the most similar first. */
  similar(place: number): { place: number; cosine: number }[] {
    const { other, cosine } = this.data.similar ?? {};
    return (this.similarOf.get(place) ?? []).map((row) => ({ place: other!.values[row], cosine: cosine!.values[row] }));
  }

  /** All weights of a head in the short text, (L, L), query then key. */
  picture(place: number): Float32Array {
    const { tokens, weights } = this.data.picture!;
    return weights.values.subarray(place * tokens.length ** 2, (place + 1) * tokens.length ** 2);
  }
}

/** The rows of a table that belong to each head, in their order. */
function rowsByHead(heads: Iterable<number> = []): Map<number, number[]> {
  const found = new Map<number, number[]>();
  let row = 0;
  for (const place of heads) found.set(place, [...(found.get(place) ?? []), row++]);
  return found;
}

/** One or two letters for each role, all different: the first letter of the role where it is free. */
export function abbreviate(roles: string[]): Map<string, string> {
  const taken = new Set<string>();
  const found = new Map<string, string>();
  for (const role of roles) {
    const characters = [...role.replace(/[^\p{L}\p{N}]+/gu, "")];
    const first = (characters[0] ?? "?").toUpperCase();
    const initials = role.split(/[^\p{L}\p{N}]+/u).filter(Boolean).map((word) => [...word][0]);
    const options = [first, ...initials.slice(1), ...characters.slice(1)].map((c, i) => (i ? first + c.toLowerCase() : c));
    const letter = options.find((option) => !taken.has(option)) ?? String(found.size + 1);
    taken.add(letter);
    found.set(role, letter);
  }
  return found;
}
