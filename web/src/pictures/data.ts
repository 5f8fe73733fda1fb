// A picture and where each of its parts looked: an entry of the key `pictures` of the page's data, described in
// src/limelight/microscope/page/pack_sources.py, and questions about it.

import type { State } from "../app.ts";
import type { Tensor } from "../data.ts";
import { range } from "../reading.ts";
import type { RowsOf } from "../rows.ts";

export interface PictureOf<Numbers> {
  width: number;
  height: number;
  pixels: Numbers;
  rows: number;
  columns: number;
  before: number;
  join: number;
  weights: RowsOf<Numbers>;
}

/** Which heads the weights of a picture are of. */
export function headsName({ scope, layer, head }: State): string {
  if (scope === "head") return `head ${layer}.${head}`;
  return scope === "all" ? "the strongest of all heads" : `layer ${layer}, mean over its heads`;
}

export class Picture {
  readonly cellRows: number;
  readonly cellColumns: number;
  readonly parts: number;
  readonly length: number;
  private bitmap: HTMLCanvasElement | null = null;

  constructor(
    readonly data: PictureOf<Tensor>,
    readonly layers: number,
    readonly heads: number,
  ) {
    this.cellRows = Math.ceil(data.rows / data.join);
    this.cellColumns = Math.ceil(data.columns / data.join);
    this.parts = data.before + this.cellRows * this.cellColumns;
    this.length = data.before + data.rows * data.columns;
  }

  /** The part that a token belongs to: itself, or a cell of patches. */
  partOf(token: number): number {
    const { before, columns, join } = this.data;
    if (token < before) return token;
    const [row, column] = [Math.floor((token - before) / columns), (token - before) % columns];
    return before + Math.floor(row / join) * this.cellColumns + Math.floor(column / join);
  }

  /** The first token of a part. */
  tokenOf(part: number): number {
    const { before, columns, join } = this.data;
    if (part < before) return part;
    const [row, column] = this.cellOf(part)!;
    return before + row * join * columns + column * join;
  }

  /** Row and column of a cell; null for a special token. */
  cellOf(part: number): [number, number] | null {
    const at = part - this.data.before;
    return at < 0 ? null : [Math.floor(at / this.cellColumns), at % this.cellColumns];
  }

  /** The part of a cell. */
  partAt(row: number, column: number): number {
    return this.data.before + row * this.cellColumns + column;
  }

  /** How many tokens a part stands for. */
  size(part: number): number {
    const cell = this.cellOf(part);
    if (!cell) return 1;
    const { rows, columns, join } = this.data;
    return Math.min(join, rows - cell[0] * join) * Math.min(join, columns - cell[1] * join);
  }

  private weight(layer: number, head: number, query: number, key: number): number {
    const { levels, codes, top } = this.data.weights;
    const row = (layer * this.heads + head) * this.parts + query;
    const code = codes.values[row * this.parts + key] / levels;
    return top.values[row] * code * code;
  }

  /** Attention between a part and every other: given or received, of a head, mean of a layer, strongest of all. */
  row(part: number, { direction, scope, layer, head }: Pick<State, "direction" | "scope" | "layer" | "head">): Float32Array {
    const layers = scope === "all" ? range(this.layers) : [layer];
    const heads = scope === "head" ? [head] : range(this.heads);
    const row = new Float32Array(this.parts);
    for (const l of layers)
      for (const h of heads)
        for (let other = 0; other < this.parts; other++) {
          const weight = direction === "from" ? this.weight(l, h, part, other) : this.weight(l, h, other, part);
          row[other] = scope === "all" ? Math.max(row[other], weight) : row[other] + weight / heads.length;
        }
    return row;
  }

  /** The largest weight of a row on patches: the upper end of the colours. */
  high(row: Float32Array): number {
    return Math.max(1e-6, ...row.subarray(this.data.before));
  }

  /** The picture as a canvas of its own size. */
  get canvas(): HTMLCanvasElement {
    if (this.bitmap) return this.bitmap;
    const { width, height, pixels } = this.data;
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [width, height];
    const image = new ImageData(width, height);
    for (let at = 0; at < width * height; at++) {
      for (let channel = 0; channel < 3; channel++) image.data[4 * at + channel] = pixels.values[3 * at + channel];
      image.data[4 * at + 3] = 255;
    }
    canvas.getContext("2d")!.putImageData(image, 0, 0);
    return (this.bitmap = canvas);
  }
}
