// Numbers and names as the page writes them.

import { show } from "../app.ts";
import type { Measure } from "./data.ts";

export { show };

export const count = (value: number): string => (Number.isFinite(value) ? Math.round(value).toLocaleString("en") : "–");

export const signed = (value: number): string => (value > 0 ? "+" : "") + show(value).replace("-", "−");

const UNITS: Record<string, string> = {
  share: "share of attention",
  accuracy: "share of cases",
  nats: "nats",
  tokens: "tokens",
  loss: "nats of loss",
};

/** The unit of a measure, in words. */
export const unitOf = (measure: Measure): string => UNITS[measure.unit] ?? measure.unit;

export const plural = (number: number, one: string, many = one + "s"): string => `${count(number)} ${number === 1 ? one : many}`;

/** The median of the numbers that are known. */
export function median(values: Float32Array): number {
  const known = values.filter(Number.isFinite).sort();
  if (!known.length) return NaN;
  const middle = known.length >> 1;
  return known.length % 2 ? known[middle] : (known[middle - 1] + known[middle]) / 2;
}
