// The colours of a measure: one direction of lightness from zero, or two hues about zero where there are negative numbers.

import { css, type Rgb, shade, type Theme } from "../colour.ts";

export interface Scale {
  low: number;
  high: number;
  signed: boolean;
  tint(value: number): Rgb;
}

const ENDS: Record<Theme, [Rgb, Rgb, Rgb]> = {
  light: [[31, 81, 134], [246, 244, 236], [176, 58, 8]],
  dark: [[104, 170, 226], [25, 26, 32], [255, 157, 92]],
};

export const INK: Record<Theme, { ink: string; faint: string; mark: string; page: string; line: string; rule: string; soft: string }> = {
  light: { ink: "#1d1e22", faint: "#63646b", mark: "#c2410c", page: "#ffffff", line: "#1f5186", rule: "#e4e2d9", soft: "#f1efe7" },
  dark: { ink: "#ecebe4", faint: "#a3a39d", mark: "#ff9d5c", page: "#17181d", line: "#e6dd6e", rule: "#2b2c33", soft: "#202128" },
};

const mix = (a: Rgb, b: Rgb, part: number): Rgb => a.map((c, k) => Math.round(c + (b[k] - c) * part)) as Rgb;

/** The scale of some numbers: to the largest, or on both sides of zero; `whole`: from 0 to 1. */
export function scaleOf(values: Iterable<number>, theme: Theme, whole = false): Scale {
  let [low, high] = [0, 0];
  for (const value of values) if (Number.isFinite(value)) [low, high] = [Math.min(low, value), Math.max(high, value)];
  if (low < 0) {
    const most = rounded(Math.max(high, -low));
    const [minus, zero, plus] = ENDS[theme];
    const tint = (value: number) => mix(zero, value < 0 ? minus : plus, Math.min(1, Math.abs(value) / most));
    return { low: -most, high: most, signed: true, tint };
  }
  const top = whole ? 1 : rounded(high);
  return { low: 0, high: top, signed: false, tint: (value) => shade(theme, value / top) };
}

/** The next number up with two digits. */
function rounded(value: number): number {
  if (!(value > 0)) return 1;
  const step = 10 ** (Math.floor(Math.log10(value)) - 1);
  return Number((Math.ceil(value / step - 1e-6) * step).toPrecision(2));
}

export const gradient = (scale: Scale, steps = 24): string[] =>
  Array.from({ length: steps + 1 }, (_, i) => css(scale.tint(scale.low + (i / steps) * (scale.high - scale.low))));
