// Axes of the charts: nice numbers, and lines with their labels.

import { svg } from "../dom.ts";
import { line, type Tone, write } from "./draw.ts";
import { brief } from "./text.ts";

export interface Axis {
  low: number;
  high: number;
  ticks: number[];
  at(value: number): number; // in the drawing
}

/**
 * An axis over some numbers, from `from` to `to` in the drawing, with about `most` ticks at round numbers. It ends at
 * ticks, or with `tight` where the numbers end, which then are whole.
 */
export function axis(values: Iterable<number>, from: number, to: number, most = 5, tight = false): Axis {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) if (Number.isFinite(value)) [low, high] = [Math.min(low, value), Math.max(high, value)];
  if (!(low <= high)) [low, high] = [0, 1];
  if (low > 0 && low < 0.4 * high) low = 0;
  if (high === low) high = low + (Math.abs(low) || 1);
  const rough = Math.max((high - low) / most, tight ? 1 : 0);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = (tight ? [1, 2, 5, 10] : [1, 2, 2.5, 5, 10]).map((m) => m * power).find((s) => s >= rough)!;
  const first = Math.floor(low / step + 1e-9);
  const count = Math.ceil(high / step - 1e-9) - first;
  const ticks = Array.from({ length: count + 1 }, (_, i) => (first + i) * step);
  if (!tight) [low, high] = [ticks[0], ticks[count]];
  return { low, high, ticks: ticks.filter((tick) => tick >= low && tick <= high), at: (value) => from + ((to - from) * (value - low)) / (high - low) };
}

/** Grid lines and numbers of both axes of a chart. */
export function frame(x: Axis, y: Axis, tone: Tone): SVGGElement {
  const [left, right, top, bottom] = [x.at(x.low), x.at(x.high), y.at(y.high), y.at(y.low)];
  const group = svg("g", { "font-size": 11 });
  for (const tick of y.ticks) {
    group.append(line(`M${left} ${y.at(tick).toFixed(1)}H${right}`, tone.rule));
    group.append(write(left - 6, y.at(tick) + 4, brief(tick), tone.faint, { "text-anchor": "end" }));
  }
  for (const tick of x.ticks) {
    group.append(line(`M${x.at(tick).toFixed(1)} ${top}V${bottom + 4}`, tone.rule));
    group.append(write(x.at(tick), bottom + 17, brief(tick), tone.faint, { "text-anchor": "middle" }));
  }
  return group;
}
