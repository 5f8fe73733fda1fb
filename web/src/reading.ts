// Questions about one text, answered from exact weights or, for a long text, from blocks and strongest relations.

import { directionOf } from "./bidi.ts";
import type { Page, ReadingData } from "./data.ts";

export type Direction = "from" | "to";
export const isDirection = (text: string | undefined): text is Direction => text === "from" || text === "to";
export type Scope = "head" | "layer" | "all";

/** The sign by which a token of blanks is shown; null for any other. */
export function signOf(written: string): string | null {
  if (written === "" || written.trim()) return null;
  return /\n/.test(written) ? "↵" : "␣";
}

/** The weight between one token and every other; NaN: not kept (long texts). */
export type Row = Float32Array;

const known = new WeakMap<Page, Reading[]>();

export class Reading {
  readonly length: number;
  readonly side: number;
  readonly exact: boolean;
  readonly unitOf: Int32Array;
  readonly units: number[][];
  readonly unitText: string[];
  readonly special: Set<number>;
  readonly apart: Set<number>;
  readonly unknown: Set<number>;
  private readonly slice: (start: number, end: number) => string;
  readonly content: Set<number>;
  readonly aside: Set<number>;
  readonly dir: "ltr" | "rtl";
  private receivedMean: Float32Array | null = null;
  private incoming: { start: Uint32Array; at: Uint32Array } | null = null;

  constructor(
    readonly data: ReadingData,
    readonly layers: number,
    readonly heads: number,
  ) {
    const { tokens, words } = data;
    this.length = tokens.text.length;
    this.side = data.map.shares.shape[2];
    this.exact = data.map.block === 1;
    this.special = new Set(tokens.special);
    this.apart = new Set(tokens.apart);
    this.unknown = new Set(tokens.unknown);
    this.dir = directionOf(data.text);
    this.unitOf = new Int32Array(this.length);
    this.slice = sliceText(data.text);
    this.unitText = [...words.text];
    this.units = words.text.map(() => []);
    tokens.word.forEach((word, position) => {
      if (word < 0) {
        word = this.units.push([]) - 1;
        this.unitText.push(signOf(this.slice(tokens.start[position], tokens.end[position])) ?? tokens.text[position]);
      }
      this.unitOf[position] = word;
      this.units[word].push(position);
    });
    this.aside = new Set([...words.mark, ...tokens.apart.map((position) => this.unitOf[position])]);
    for (let unit = words.text.length; unit < this.units.length; unit++) this.aside.add(unit);
    this.content = new Set(words.content.filter((word) => !this.aside.has(word)));
  }

  /** The readings of a page, the same ones in every call. */
  static all(page: Page): Reading[] {
    const made = known.get(page) ?? page.readings.map((data) => new Reading(data, page.model.layers, page.model.heads));
    known.set(page, made);
    return made;
  }

  /** How many keys a query sees. */
  visible(query: number): number {
    return this.data.causal ? query + 1 : (this.data.keys ?? this.length);
  }

  sees(query: number, key: number): boolean {
    return !this.data.causal || key <= query;
  }

  /** One head's map, `side * side`; with `hide`, without what falls on special tokens and sinks. */
  map(layer: number, head: number, hide: boolean): Float32Array {
    const size = this.side * this.side;
    const from = (layer * this.heads + head) * size;
    const whole = this.data.map.shares.values.subarray(from, from + size);
    const apart = this.data.map.apart;
    if (!hide || !apart) return whole;
    return whole.map((share, i) => Math.max(0, share - apart.values[from + i]));
  }

  /** Rows and columns of the map that are shown. */
  shown(hide: boolean): number[] {
    const every = Array.from({ length: this.side }, (_, i) => i);
    const left = hide && this.exact ? every.filter((i) => !this.apart.has(i)) : every;
    return left.length ? left : every;
  }

  /** The largest value that any head's map shows: the upper end of the common colour scale. */
  highest(hide: boolean, only?: [layer: number, head: number]): number {
    const shown = this.shown(hide);
    let high = 0;
    for (let layer = 0; layer < this.layers; layer++)
      for (let head = 0; head < this.heads; head++) {
        if (only && (only[0] !== layer || only[1] !== head)) continue;
        const map = this.map(layer, head, hide);
        for (const row of shown) for (const column of shown) high = Math.max(high, map[row * this.side + column]);
      }
    return high || 1;
  }

  weight(layer: number, head: number, query: number, key: number): number {
    return this.data.map.shares.values[((layer * this.heads + head) * this.length + query) * this.length + key];
  }

  /** Attention between a token and every other token: given (`from`) or received (`to`). */
  row(token: number, direction: Direction, scope: Scope, layer: number, head: number): Row {
    return this.exact ? this.exactRow(token, direction, scope, layer, head) : this.keptRow(token, direction, scope, layer, head);
  }

  private exactRow(token: number, direction: Direction, scope: Scope, layer: number, head: number): Row {
    const row = new Float32Array(this.length);
    const layers = scope === "all" ? range(this.layers) : [layer];
    const heads = scope === "head" ? [head] : range(this.heads);
    for (let other = 0; other < this.length; other++) {
      let value = 0;
      for (const l of layers)
        for (const h of heads) {
          const weight = direction === "from" ? this.weight(l, h, token, other) : this.weight(l, h, other, token);
          value = scope === "all" ? Math.max(value, weight) : value + weight / heads.length;
        }
      row[other] = value;
    }
    return row;
  }

  private keptRow(token: number, direction: Direction, scope: Scope, layer: number, head: number): Row {
    const row = new Float32Array(this.length).fill(NaN);
    for (const [query, key, at, weight] of this.kept(token, direction)) {
      if (scope === "head" && at !== layer * this.heads + head) continue;
      if (scope === "layer" && Math.floor(at / this.heads) !== layer) continue;
      const other = direction === "from" ? key : query;
      if (!(row[other] >= weight)) row[other] = weight;
    }
    return row;
  }

  /** The relations kept for a long text that touch a token: [query, key, layer * H + head, weight]. */
  *kept(token: number, direction: Direction): Generator<[number, number, number, number]> {
    const { each, keys, heads, weights } = this.data.relations!;
    if (direction === "from") {
      for (let at = token * each; at < (token + 1) * each; at++)
        if (weights.values[at] > 0) yield [token, keys.values[at], heads.values[at], weights.values[at]];
      return;
    }
    const { start, at: places } = (this.incoming ??= this.turnAround());
    for (let i = start[token]; i < start[token + 1]; i++) {
      const at = places[i];
      yield [Math.floor(at / each), token, heads.values[at], weights.values[at]];
    }
  }

  /** Where in the table each key stands: the same relations, read from the other end. */
  private turnAround() {
    const { keys, weights } = this.data.relations!;
    const start = new Uint32Array(this.length + 1);
    for (let i = 0; i < keys.values.length; i++) if (weights.values[i] > 0) start[keys.values[i] + 1]++;
    for (let i = 0; i < this.length; i++) start[i + 1] += start[i];
    const next = start.slice();
    const at = new Uint32Array(start[this.length]);
    for (let i = 0; i < keys.values.length; i++) if (weights.values[i] > 0) at[next[keys.values[i]]++] = i;
    return { start, at };
  }

  /** Weight of unit `key` if the pieces of unit `query` spread their attention evenly. */
  even(query: number, key: number): number {
    let sum = 0;
    for (const row of this.units[query])
      sum += this.units[key].filter((column) => this.sees(row, column)).length / this.visible(row);
    return sum / this.units[query].length;
  }

  /** How much unit `query` looks at unit `key` in one head: the sum to its pieces, the mean from its pieces. */
  between(query: number, key: number, layer: number, head: number): number {
    let sum = 0;
    for (const row of this.units[query]) for (const column of this.units[key]) sum += this.weight(layer, head, row, column);
    return sum / this.units[query].length;
  }

  /** Attention a token receives, as a multiple of what an even spread would give it, mean over all heads. */
  receivedTimesEven(token: number, layer?: number): number {
    const { values } = this.data.received;
    if (layer !== undefined) return 2 ** values[layer * this.length + token];
    if (!this.receivedMean) {
      this.receivedMean = new Float32Array(this.length);
      for (let at = 0; at < values.length; at++) this.receivedMean[at % this.length] += 2 ** values[at] / this.layers;
    }
    return this.receivedMean[token];
  }

  /** Cosine of a unit's vector with its embedding, by layers passed. */
  path(unit: number): number[] {
    return range(this.layers + 1).map((layer) => this.data.path.values[layer * this.units.length + unit]);
  }

  /** Cosine of a unit's vector with that of the layer before. */
  steps(unit: number): number[] {
    return range(this.layers + 1).map((layer) => this.data.steps.values[layer * this.units.length + unit]);
  }

  /** How many words on from `unit` the `other` stands in the text; negative: back. */
  wordsBetween(unit: number, other: number): number {
    const before = (at: number) => {
      const first = this.units[at][0];
      let [low, high] = [0, this.data.words.text.length];
      while (low < high) {
        const middle = (low + high) >> 1;
        if (this.units[middle][0] < first) low = middle + 1;
        else high = middle;
      }
      return low;
    };
    return before(other) - before(unit);
  }

  /** The number of a unit among the words of the text, from 1; null for what is no word. */
  wordNumber(unit: number): number | null {
    return unit < this.data.words.text.length ? unit + 1 : null;
  }

  /** What is set apart: the share of a head's attention that falls on it is one of the head's numbers. */
  get setApart(): string {
    return this.data.keys === null ? "special tokens and sinks" : "the silence behind the sound";
  }

  /** What adds up to 1. */
  get whole(): string {
    return this.data.keys === null ? "each row adds up to 1" : "each row adds up to 1 with the silence behind the sound";
  }

  /** The share of attention that falls on what is set apart if all attention is spread evenly. */
  evenApart(): number {
    const { keys, tokens: { apart } } = this.data;
    if (keys !== null) return (keys - this.length) / keys;
    let sum = 0;
    for (let query = 0; query < this.length; query++)
      sum += apart.filter((key) => this.sees(query, key)).length / this.visible(query);
    return sum / this.length;
  }

  /** A token as the text has it; a special token by its name. */
  spelled(token: number): string {
    const { start, end, text } = this.data.tokens;
    const written = this.slice(start[token], end[token]);
    if (this.special.has(token)) return text[token];
    return signOf(written) ?? (written || text[token]);
  }
}

export const range = (count: number): number[] => Array.from({ length: count }, (_, i) => i);

/** Cut a text by characters as Python counts them; JavaScript counts those beyond the basic plane twice. */
export function sliceText(text: string): (start: number, end: number) => string {
  if (!/[\ud800-\udfff]/.test(text)) return (start, end) => text.slice(start, end);
  const characters = [...text];
  return (start, end) => characters.slice(start, end).join("");
}
