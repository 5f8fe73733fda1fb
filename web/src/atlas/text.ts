// Numbers and names as the page writes them.

import type { Claim, Named } from "./data.ts";

/** A number with three digits after the point, fewer where it is large, a bound where it is tiny. */
export function show(value: number): string {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && size < 0.0005) return value > 0 ? "<0.001" : ">−0.001";
  return value.toFixed(size >= 1000 ? 0 : size >= 10 ? 1 : 3).replace("-", "−");
}

const DIGITS: Record<string, number> = { tokens: 1, nats: 2 };

/** A score of a measure, with as many digits as its unit needs. */
export function showAs({ unit }: Named, value: number): string {
  const digits = DIGITS[unit];
  return digits === undefined || !Number.isFinite(value) ? show(value) : value.toFixed(digits).replace("-", "−");
}

/** Whether a score lies between 0 and 1. */
export const isShare = ({ unit }: Named): boolean => unit.startsWith("share") || unit === "accuracy";

/** A number on an axis: without zeros at its end. */
export const brief = (value: number): string => String(Number(value.toPrecision(3))).replace("-", "−");

export const count = (value: number): string => (Number.isFinite(value) ? Math.round(value).toLocaleString("en") : "–");

export const signed = (value: number, of?: Named): string => (value >= 0.0005 ? "+" : "") + (of ? showAs(of, value) : show(value));

const UNITS: Record<string, string> = {
  share: "share of attention",
  accuracy: "share of cases",
  nats: "nats",
  tokens: "tokens",
  loss: "nats of loss",
};

/** The unit of a measure, in words. */
export const unitOf = (measure: Named): string => UNITS[measure.unit] ?? measure.unit;

export const plural = (number: number, one: string, many = one + "s"): string => `${count(number)} ${number === 1 ? one : many}`;

/** The median of the numbers that are known. */
export function median(values: Float32Array): number {
  const known = values.filter(Number.isFinite).sort();
  if (!known.length) return NaN;
  const middle = known.length >> 1;
  return known.length % 2 ? known[middle] : (known[middle - 1] + known[middle]) / 2;
}

/** What a measure is, and what its baseline. */
export const about = ({ label, definition, baselineName }: Named): string =>
  `${definition || label.replace(/^./u, (first) => first.toUpperCase()) + "."} Baseline: ${baselineName}.`;

/** What a claim asks for. */
export function conditions({ threshold, overBaseline, margin }: Claim): string {
  const parts = [
    threshold > 0 ? brief(threshold) : "",
    overBaseline > 1 ? `${brief(overBaseline)} × the baseline` : "the baseline",
    margin === null ? "" : `${brief(margin)} above shuffled text`,
  ];
  return parts.filter(Boolean).join(", ");
}
