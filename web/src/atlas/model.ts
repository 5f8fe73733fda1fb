// An atlas: what was measured of every head, and what follows from it.

import { range } from "../reading.ts";
import type { AtlasData, Measure } from "./data.ts";

export interface Held {
  role: string;
  measure: number;
}

export interface Example {
  index: number;
  tokens: string[];
  text: number;
  query: number;
  key: number;
  weight: number;
  map: Float32Array | null; // (W, W), query then key
}

export type Shown = "here" | "other" | "difference";

export class Atlas {
  readonly layers: number;
  readonly heads: number;
  readonly count: number;
  readonly roles: string[]; // that some head holds, the most frequent first
  readonly letters: Map<string, string>; // of each role, for the cells of the grid
  private readonly held: { here: Held[][]; other: Held[][] };
  private readonly examplesOf = new Map<number, number[]>();
  private readonly mapAt = new Map<number, number>();
  private vectors: Float32Array[] | null = null;

  constructor(readonly data: AtlasData) {
    ({ layers: this.layers, heads: this.heads } = data.model);
    this.count = this.layers * this.heads;
    this.held = { here: range(this.count).map(() => []), other: range(this.count).map(() => []) };
    for (const { head, role, measure, other } of data.roles) this.held[other ? "other" : "here"][head].push({ role, measure });
    const frequency = new Map<string, number>();
    for (const { role } of data.roles) frequency.set(role, (frequency.get(role) ?? 0) + 1);
    this.roles = [...frequency.keys()].sort((a, b) => frequency.get(b)! - frequency.get(a)! || (a < b ? -1 : 1));
    this.letters = abbreviate(this.roles);
    this.findExamples();
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

  /** The heads with a sink, by the threshold of its measure; null where it was not measured. */
  sinks(): number | null {
    const sink = this.sinkMeasure();
    return sink && range(this.count).filter((place) => this.isSink(place)).length;
  }

  sinkMeasure(): Measure | null {
    return this.data.sink === null ? null : this.data.measures[this.data.sink];
  }

  isSink(place: number): boolean {
    const sink = this.sinkMeasure();
    return sink !== null && sink.total.score.values[place] > (sink.claim?.threshold ?? 0.3);
  }

  /** The scores of a measure over all texts, here, in the other atlas, or their difference (here less there). */
  scores(measure: Measure, shown: Shown): Float32Array {
    const [here, there] = [measure.total.score.values, measure.other?.values];
    if (shown === "here" || !there) return here;
    return shown === "other" ? there : here.map((value, place) => value - there[place]);
  }

  examples(place: number): Example[] {
    return (this.examplesOf.get(place) ?? []).map((index) => this.example(index));
  }

  /** The heads most like a head: cosine over all measures, each in standard deviations from its mean over heads. */
  similar(place: number, most = 6): { place: number; cosine: number }[] {
    const vectors = (this.vectors ??= this.standardised());
    const own = vectors[place];
    return range(this.count)
      .filter((other) => other !== place)
      .map((other) => ({ place: other, cosine: cosine(own, vectors[other]) }))
      .sort((a, b) => b.cosine - a.cosine)
      .slice(0, most);
  }

  private standardised(): Float32Array[] {
    const { measures, profile, classes } = this.data;
    const columns = measures.map((measure) => measure.total.score.values);
    for (const [share, weight] of [[profile?.share, 0.5], [classes?.share, 0.5]] as const) {
      const width = share?.shape[2] ?? 0;
      for (const k of range(width)) columns.push(Float32Array.from(range(this.count), (place) => weight * share!.values[place * width + k]));
    }
    const scaled = columns.map(standard);
    return range(this.count).map((place) => Float32Array.from(scaled, (column) => column[place]));
  }

  private findExamples(): void {
    const { examples } = this.data;
    examples?.head.values.forEach((place, index) => {
      if (!this.examplesOf.has(place)) this.examplesOf.set(place, []);
      this.examplesOf.get(place)!.push(index);
    });
    let at = 0;
    for (const index of examples?.maps.example ?? []) {
      this.mapAt.set(index, at);
      at += this.width(index) ** 2;
    }
  }

  private width(index: number): number {
    const { starts, window } = this.data.examples!;
    return starts.values[window.values[index] + 1] - starts.values[window.values[index]];
  }

  private example(index: number): Example {
    const { vocabulary, tokens, starts, window, text, query, key, weight, maps } = this.data.examples!;
    const [start, width, at] = [starts.values[window.values[index]], this.width(index), this.mapAt.get(index)];
    return {
      index,
      tokens: Array.from(tokens.values.subarray(start, start + width), (id) => vocabulary[id]),
      text: text.values[index],
      query: query.values[index],
      key: key.values[index],
      weight: weight.values[index],
      map: at === undefined ? null : maps.weights.values.subarray(at, at + width ** 2),
    };
  }
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

function standard(values: Float32Array): Float32Array {
  const known = values.filter(Number.isFinite);
  const mean = known.reduce((a, b) => a + b, 0) / Math.max(1, known.length);
  const deviation = Math.sqrt(known.reduce((sum, value) => sum + (value - mean) ** 2, 0) / Math.max(1, known.length));
  return values.map((value) => (Number.isFinite(value) && deviation > 1e-9 ? (value - mean) / deviation : 0));
}

function cosine(a: Float32Array, b: Float32Array): number {
  let [product, own, other] = [0, 0, 0];
  for (let i = 0; i < a.length; i++) {
    product += a[i] * b[i];
    own += a[i] ** 2;
    other += b[i] ** 2;
  }
  return own && other ? product / Math.sqrt(own * other) : 0;
}
