// What a head looks at: by distance, and by the kind of token, beside an even spread.

import { svg } from "../dom.ts";
import { range } from "../reading.ts";
import type { App } from "./app.ts";
import { box, clip, line, toneOf, write } from "./draw.ts";
import { brief, show } from "./text.ts";

export const PROFILE_HEIGHT = 176;

/** Share of the attention at each distance of the key from the query. */
export function profileDrawing(app: App, place: number, width: number): SVGGElement {
  const { bins, share, even } = app.atlas.data.profile!;
  const tone = toneOf(app);
  const values = share.values.subarray(place * bins.length, (place + 1) * bins.length);
  const known = [...values, ...even].filter((value): value is number => value !== null && Number.isFinite(value));
  const top = nice(Math.max(...known, 0.02));
  const [left, right, high, low] = [38, width - 6, 12, PROFILE_HEIGHT - 44];
  const step = (right - left) / Math.max(1, bins.length);
  const y = (value: number) => low - ((low - high) * Math.min(value, top)) / top;
  const group = svg("g", { "font-size": 11 });
  for (const part of [0, 0.5, 1]) {
    group.append(line(`M${left} ${y(part * top).toFixed(1)}H${right}`, tone.rule));
    group.append(write(left - 6, y(part * top) + 4, brief(part * top), tone.faint, { "text-anchor": "end" }));
  }
  const gap = step > 8 ? 2 : step > 4 ? 1 : 0;
  bins.forEach((bin, i) => {
    if (!Number.isFinite(values[i])) return;
    const bar = box(left + i * step + gap / 2, y(values[i]), step - gap, low - y(values[i]), tone.line, { rx: gap ? 1 : 0 });
    bar.append(svg("title", {}, `${binName(bin)}: ${show(values[i])}, even spread ${show(even[i] ?? NaN)}`));
    group.append(bar);
  });
  const path = even.map((value, i) => (value === null ? "" : `M${(left + i * step).toFixed(1)} ${y(value).toFixed(1)}h${step.toFixed(1)}`)).join("");
  group.append(line(path, tone.mark, { "stroke-width": 1.75 }));
  const every = Math.ceil(bins.length / Math.max(1, Math.floor((right - left) / 36)));
  const zero = Math.max(0, bins.findIndex(([first, last]) => first <= 0 && last >= 0));
  bins.forEach((bin, i) => {
    if ((i - zero) % every === 0) group.append(write(left + (i + 0.5) * step, low + 15, tick(bin), tone.faint, { "text-anchor": "middle" }));
  });
  group.append(write((left + right) / 2, low + 34, "tokens from the query to the key, − before it; far ones in bins", tone.faint, { "text-anchor": "middle" }));
  return group;
}

const FAR = 1e9; // the end of a bin without an end

const minus = (value: number): string => String(value).replace("-", "−");

/** The end of a bin that is farther from the query, or the nearer one of a bin without an end. */
function tick([first, last]: [number, number]): string {
  if (first === last) return minus(first);
  if (first < -FAR) return "≤" + minus(last);
  if (last > FAR) return "≥" + minus(first);
  return minus(first < 0 ? first : last);
}

/** A bin of distances in words. */
export function binName([first, last]: [number, number]): string {
  if (first === 0 && last === 0) return "the token itself";
  const side = first < 0 ? "before" : "after";
  const [near, far] = [Math.min(Math.abs(first), Math.abs(last)), Math.max(Math.abs(first), Math.abs(last))];
  const range = near === far ? String(near) : far > FAR ? `${near} or more` : `${near} to ${far}`;
  return `${range} token${far === 1 ? "" : "s"} ${side}`;
}

const nice = (value: number): number => [0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1].find((top) => top >= value) ?? 1;

const ROW = 21;

export const classesHeight = (app: App): number => (app.atlas.data.classes?.names.length ?? 0) * ROW + 4;

/** Share of the attention on each class of tokens. */
export function classesDrawing(app: App, place: number, width: number): SVGGElement {
  const { names, share, even } = app.atlas.data.classes!;
  const row = (of: Float32Array) => of.subarray(place * names.length, (place + 1) * names.length);
  const tone = toneOf(app);
  const [values, evens] = [row(share.values), row(even.values)];
  const [left, right] = [Math.min(148, width * 0.36), width - 52];
  const x = (value: number) => left + (right - left) * Math.min(1, value);
  const group = svg("g", { "font-size": 12 });
  for (const i of range(names.length)) {
    const y = i * ROW;
    const value = values[i];
    group.append(
      write(left - 8, y + 14, clip(names[i], Math.floor(left / 7)), tone.ink, { "text-anchor": "end" }),
      box(left, y + 5, right - left, 10, tone.soft, { rx: 2 }),
      box(left, y + 5, Number.isFinite(value) ? x(value) - left : 0, 10, tone.line, { rx: 2 }),
      write(width - 2, y + 14, show(value), tone.ink, { "text-anchor": "end" }),
    );
    if (Number.isFinite(evens[i])) group.append(box(x(evens[i]) - 1, y + 2, 2, 16, tone.mark));
  }
  return group;
}
