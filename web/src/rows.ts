// Rows of weights, each packed relative to its own largest one: the counterpart of `pack_rows` in numbers.py.

import type { Tensor } from "./data.ts";

export interface RowsOf<Numbers> {
  levels: number;
  codes: Numbers; // (..., S)
  top: Numbers; // (...)
}

/** The weights of one row, by its number among all rows. */
export function rowAt({ levels, codes, top }: RowsOf<Tensor>, at: number): Float32Array {
  const width = codes.shape[codes.shape.length - 1];
  const high = top.values[at] / (levels * levels);
  return codes.values.subarray(at * width, (at + 1) * width).map((code) => high * code * code);
}

/** The mean of some rows. */
export function meanOf(rows: RowsOf<Tensor>, places: number[]): Float32Array {
  const mean = new Float32Array(rows.codes.shape[rows.codes.shape.length - 1]);
  for (const place of places) rowAt(rows, place).forEach((weight, at) => (mean[at] += weight / places.length));
  return mean;
}
