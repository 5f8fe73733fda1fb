// What is kept of a long text's heat map: coarse blocks everywhere, finer ones in places, single keys of some rows.
//
// A cell's value is the share of its queries' attention that falls on its keys. Where nothing finer than a block is kept,
// the block's share is spread evenly over the cells inside that its queries can see; what falls on tokens set apart is
// put where they are.

import type { Reading } from "./reading.ts";

/** A square part of the map: its first query and key, and the tokens along a side. */
export interface Part {
  query: number;
  key: number;
  span: number;
}

export interface Grid {
  size: number; // tokens along the side of a cell
  row: number; // number of the first row of cells
  column: number;
  side: number; // cells along a side
  values: Float32Array;
  known: number; // the share of the visible cells that are kept in this size or finer
  rows: number; // of single tokens: how many rows have keys
}

const MOST = 144; // cells along a side: a cell is at least three pixels wide
const SMALLEST = 12; // tokens along the side of the smallest part

export class Levels {
  readonly sizes: number[]; // tokens of a cell, the coarsest first
  readonly whole: number;
  private readonly starts: Uint32Array; // of each head's refined cells
  private readonly apartBefore: Uint32Array;
  private readonly rowAt: Map<number, number>;
  private place = -1;
  private tiles = new Int32Array(0); // of the head: where the fine blocks of a cell are, or -1

  constructor(readonly reading: Reading) {
    const { map, tokens } = reading.data;
    this.sizes = [...new Set([map.block, map.fine?.block ?? map.block, 1])];
    this.whole = reading.side * map.block;
    this.starts = new Uint32Array(reading.layers * reading.heads + 1);
    map.fine?.count.forEach((count, place) => (this.starts[place + 1] = this.starts[place] + count));
    this.apartBefore = new Uint32Array(this.whole + 1);
    const apart = new Set(tokens.apart);
    for (let token = 0; token < this.whole; token++) this.apartBefore[token + 1] = this.apartBefore[token] + (apart.has(token) ? 1 : 0);
    this.rowAt = new Map(map.rows?.tokens.map((token, at) => [token, at]));
  }

  /** The nearest part that lies inside the map. */
  inside({ query, key, span }: Part): Part {
    const within = Math.min(this.whole, Math.max(Math.min(SMALLEST, this.whole), span));
    const first = (at: number) => Math.min(this.whole - within, Math.max(0, at));
    return { query: first(query), key: first(key), span: within };
  }

  /** Tokens along the side of the cells in which a part is drawn: the finest that are wide enough to see. */
  sizeFor(span: number): number {
    return this.sizes.filter((size) => span / size <= MOST).pop() ?? this.sizes[0];
  }

  /** The cells of a part, in one head; with `hide`, without what falls on tokens set apart. */
  grid(part: Part, layer: number, head: number, hide: boolean): Grid {
    this.select(layer * this.reading.heads + head);
    const size = this.sizeFor(part.span);
    const [row, column] = [Math.floor(part.query / size), Math.floor(part.key / size)];
    const side = Math.ceil((part.span + size) / size);
    const grid: Grid = { size, row, column, side, values: new Float32Array(side * side), known: 0, rows: 0 };
    const last = Math.ceil(this.reading.length / size);
    let [seen, known] = [0, 0];
    for (let i = 0; i < side && row + i < last; i++)
      for (let j = 0; j < side && column + j < last; j++) {
        const [query, key] = [(row + i) * size, (column + j) * size];
        if (this.reading.data.causal && key > query + size - 1) break;
        const [value, from] = this.share(query, key, size, hide);
        grid.values[i * side + j] = value;
        seen++;
        if (from <= size) known++;
      }
    grid.known = seen ? known / seen : 1;
    if (size === 1) this.single(grid, hide);
    return grid;
  }

  /** The share of a cell, and the tokens of the block that it is taken from. */
  share(query: number, key: number, size: number, hide: boolean): [value: number, from: number] {
    const { map } = this.reading.data;
    const { side } = this.reading;
    const cell = Math.floor(query / map.block) * side + Math.floor(key / map.block);
    const tile = size < map.block ? this.tiles[cell] : -1;
    if (tile < 0) {
      const at = this.place * side * side + cell;
      return [this.spread(map.shares.values[at], map.apart?.values[at] ?? 0, query, key, map.block, size, hide), map.block];
    }
    const fine = map.fine!;
    const factor = map.block / fine.block;
    const [i, j] = [Math.floor((query % map.block) / fine.block), Math.floor((key % map.block) / fine.block)];
    const at = (tile * factor + i) * factor + j;
    return [this.spread(fine.shares.values[at], fine.apart.values[at], query, key, fine.block, size, hide), fine.block];
  }

  /** The single weight of a pair of tokens, if it is kept. */
  weight(query: number, key: number): number | null {
    for (const [other, weight] of this.keysOf(query)) if (other === key) return weight;
    const { map } = this.reading.data;
    return map.fine?.block === 1 ? this.ofTile(query, key) : null;
  }

  private ofTile(query: number, key: number): number | null {
    const [value, from] = this.share(query, key, 1, false);
    return from === 1 ? value : null;
  }

  /** The keys of a query that are kept in the head, with their weights. */
  *keysOf(query: number): Generator<[key: number, weight: number]> {
    const { map, relations } = this.reading.data;
    const at = this.rowAt.get(query);
    if (at !== undefined) {
      const { keys, weights } = map.rows!;
      const each = keys.shape[3];
      const from = (at * this.reading.layers * this.reading.heads + this.place) * each;
      for (let n = from; n < from + each; n++) if (weights.values[n] > 0) yield [keys.values[n], weights.values[n]];
      return;
    }
    if (!relations || query >= this.reading.length) return;
    for (let n = query * relations.each; n < (query + 1) * relations.each; n++)
      if (relations.heads.values[n] === this.place && relations.weights.values[n] > 0) yield [relations.keys.values[n], relations.weights.values[n]];
  }

  /** Put the single weights that are kept into cells of single tokens. */
  private single(grid: Grid, hide: boolean): void {
    const { side, row, column, values } = grid;
    for (let i = 0; i < side; i++) {
      let any = false;
      for (const [key, weight] of this.keysOf(row + i)) {
        any = true;
        const j = key - column;
        if (j >= 0 && j < side) values[i * side + j] = hide && this.apartIn(key, key + 1) ? 0 : weight;
      }
      if (any) grid.rows++;
    }
  }

  private select(place: number): void {
    if (place === this.place) return;
    this.place = place;
    this.tiles = new Int32Array(this.reading.side ** 2).fill(-1);
    const fine = this.reading.data.map.fine;
    for (let at = this.starts[place]; at < this.starts[place + 1]; at++) this.tiles[fine!.cells.values[at]] = at;
  }

  private apartIn(from: number, to: number): number {
    return this.apartBefore[Math.min(to, this.whole)] - this.apartBefore[from];
  }

  /** The part of a block's share that one of the cells inside it has. */
  private spread(share: number, apart: number, query: number, key: number, block: number, size: number, hide: boolean): number {
    if (block === size) return hide ? Math.max(0, share - apart) : share;
    const start = key - (key % block);
    const across = this.reading.data.causal && query - (query % block) === start ? Math.floor((query % block) / size) + 1 : block / size;
    const even = Math.max(0, share - apart) / across;
    if (hide || !apart) return even;
    return even + (apart * this.apartIn(key, key + size)) / Math.max(1, this.apartIn(start, start + block));
  }
}
