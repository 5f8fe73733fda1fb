// What an encoder-decoder looked at in its source: the key `cross` of the page's data, described in
// src/limelight/microscope/page/pack_sources.py, and questions about it.

import { directionOf } from "../bidi.ts";
import type { Page, Tensor } from "../data.ts";
import { range, Reading } from "../reading.ts";
import { meanOf, type RowsOf } from "../rows.ts";

export interface CrossOf<Numbers, Encoder> {
  layers: number;
  heads: number;
  states: number;
  kept: number[];
  aligning: number[];
  named: boolean;
  weights: RowsOf<Numbers>;
  alignment: [unit: number, weight: number, even: number][];
  text: { text: string; units: { text: string[]; start: number[]; end: number[]; special: number[]; members: number[][] } } | null;
  sound: { join: number; seconds: number; length: number; times: [number, number][]; spectrum: Numbers; frame: number } | null;
  encoder: Encoder | null;
}

export type CrossData = CrossOf<Tensor, Page>;

/** Over which heads attention is shown: the mean of those that align, one head, or the mean of a layer. */
export type Over = "aligning" | "head" | "layer";

/** One end of the cross-attention: words or parts with their text, in reading order. */
export interface Side {
  text: string;
  units: string[];
  start: number[];
  end: number[];
  special: Set<number>;
  dir: "ltr" | "rtl";
}

export class Cross {
  readonly target: Reading;
  readonly words: Side;
  readonly source: Side | null;
  readonly parts: number; // units of a text, parts of a sound
  readonly queries: number;
  private readonly places: Map<number, number>;
  private readonly joined = new Map<string, Float32Array>();

  constructor(
    readonly page: Page,
    readonly data: CrossData,
  ) {
    this.target = new Reading(page.readings[0], page.model.layers, page.model.heads);
    const { tokens, words, text } = page.readings[0];
    const first = words.text.map((_, word) => this.target.units[word]);
    this.words = {
      text,
      units: words.text,
      start: first.map((places) => tokens.start[places[0]]),
      end: first.map((places) => tokens.end[places[places.length - 1]]),
      special: new Set(),
      dir: directionOf(text),
    };
    const units = data.text?.units;
    this.source = data.text && units ? { text: data.text.text, units: units.text, start: units.start, end: units.end, special: new Set(units.special), dir: directionOf(data.text.text) } : null;
    const width = data.weights.codes.shape[2];
    this.queries = data.weights.codes.shape[1];
    this.parts = units ? units.text.length : width;
    this.places = new Map(data.kept.map((place, at) => [place, at]));
  }

  get count(): number {
    return this.words.units.length;
  }

  /** Whether the weights of a head are kept. */
  has(place: number): boolean {
    return this.places.has(place);
  }

  /** The heads of a scope, by layer * H + head: those that are kept. */
  headsOf(over: Over, layer: number, head: number): number[] {
    const { aligning, heads, kept } = this.data;
    if (over === "head") return [layer * heads + head];
    const wanted = over === "aligning" ? aligning : range(heads).map((other) => layer * heads + other);
    const found = wanted.filter((place) => this.places.has(place));
    return found.length ? found : kept.slice(0, 1);
  }

  /** The positions of the queries that predict a word, or one token of it: one place before its tokens. */
  private queriesOf(word: number, piece: number | null): number[] {
    const places = this.target.units[word];
    return (piece === null ? places : [places[piece]]).filter((place) => place > 0).map((place) => place - 1);
  }

  /** Attention of a word (or of one of its tokens) on every part of the source, mean over some heads. */
  row(word: number, heads: number[], piece: number | null = null): Float32Array {
    const key = `${word} ${piece} ${heads.join()}`;
    const known = this.joined.get(key);
    if (known) return known;
    const queries = this.queriesOf(word, piece);
    const rows = heads.flatMap((place) => queries.map((query) => this.places.get(place)! * this.queries + query));
    const states = meanOf(this.data.weights, rows);
    const members = this.data.text?.units.members;
    const row = members ? Float32Array.from(members, (inside) => inside.reduce((sum, at) => sum + states[at], 0)) : states;
    if (this.joined.size > 20_000) this.joined.clear();
    this.joined.set(key, row);
    return row;
  }

  /** Attention of every word on one part of the source. */
  column(part: number, heads: number[]): Float32Array {
    return Float32Array.from(range(this.count), (word) => this.row(word, heads)[part]);
  }

  /** What a part would get of attention that is spread evenly over all states of the encoder. */
  even(part: number): number {
    const { text, sound, states } = this.data;
    if (text) return text.units.members[part].length / states;
    return Math.min(sound!.join, sound!.length - part * sound!.join) / states;
  }

  /** The part that a word looks at most, special tokens left out where there are others. */
  best(word: number, heads: number[]): number {
    const row = this.row(word, heads);
    const usual = range(this.parts).filter((part) => !this.source?.special.has(part));
    return (usual.length ? usual : range(this.parts)).reduce((best, part) => (row[part] > row[best] ? part : best));
  }

  /** The kept head in which a word gives a part most, by layer * H + head. */
  strongestHead(word: number, part: number): number {
    return this.data.kept.reduce((best, place) => (this.row(word, [place])[part] > this.row(word, [best])[part] ? place : best));
  }

  /** The seconds at which a part of a sound begins and ends. */
  secondsOf(part: number): [number, number] {
    const { join, seconds, length } = this.data.sound!;
    return [part * join * seconds, Math.min((part + 1) * join, length) * seconds];
  }

  /** The length of a sound in seconds. */
  get duration(): number {
    const { seconds, length } = this.data.sound!;
    return length * seconds;
  }

  /** The word that is said at a time; null where none is. */
  wordAt(second: number): number | null {
    const { times } = this.data.sound!;
    let found: number | null = null;
    times.forEach(([start], word) => {
      if (start <= second) found = word;
    });
    return found === null && times.length ? 0 : found;
  }

  name(part: number): string {
    if (this.source) return this.source.units[part];
    const [start, end] = this.secondsOf(part);
    return `${start.toFixed(2)}–${end.toFixed(2)} s`;
  }
}
