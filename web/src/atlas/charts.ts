// What a head looks at: by distance, and by the kind of token, beside an even spread.

import { svg } from "../dom.ts";
import { range } from "../reading.ts";
import type { App } from "./app.ts";
import { box, clip, line, toneOf, write } from "./draw.ts";
import { show } from "./text.ts";

export const PROFILE_HEIGHT = 176;

/** Mean weight at each distance of the key from the query. */
export function profileDrawing(app: App, place: number, width: number): SVGGElement {
  const { offsets, share, even } = app.atlas.data.profile!;
  const tone = toneOf(app);
  const values = share.values.subarray(place * offsets.length, (place + 1) * offsets.length);
  const known = [...values].filter(Number.isFinite);
  const top = nice(Math.max(...known, 0.02));
  const [left, right, high, low] = [38, width - 6, 12, PROFILE_HEIGHT - 44];
  const step = (right - left) / offsets.length;
  const y = (value: number) => low - ((low - high) * Math.min(value, top)) / top;
  const group = svg("g", { "font-size": 11 });
  for (const part of [0, 0.5, 1]) {
    group.append(line(`M${left} ${y(part * top).toFixed(1)}H${right}`, tone.rule));
    group.append(write(left - 6, y(part * top) + 4, String(Number((part * top).toPrecision(3))), tone.faint, { "text-anchor": "end" }));
  }
  const gap = step > 8 ? 2 : step > 4 ? 1 : 0;
  offsets.forEach((_, i) => {
    if (!Number.isFinite(values[i])) return;
    const bar = box(left + i * step + gap / 2, y(values[i]), step - gap, low - y(values[i]), tone.line, { rx: gap ? 1 : 0 });
    bar.append(svg("title", {}, `${named(offsets, i)}: ${show(values[i])}${even ? `, even spread ${show(even[i])}` : ""}`));
    group.append(bar);
  });
  if (even) {
    const path = even.map((value, i) => `M${(left + i * step).toFixed(1)} ${y(value).toFixed(1)}h${step.toFixed(1)}`).join("");
    group.append(line(path, tone.mark, { "stroke-width": 1.75 }));
  }
  const most = Math.max(1, Math.floor((right - left) / 34));
  const every = Math.ceil(offsets.length / most);
  const zero = Math.max(0, offsets.indexOf(0));
  offsets.forEach((offset, i) => {
    if ((i - zero) % every === 0) group.append(write(left + (i + 0.5) * step, low + 15, String(offset).replace("-", "−"), tone.faint, { "text-anchor": "middle" }));
  });
  group.append(write((left + right) / 2, low + 34, "distance of the key from the query, in tokens (− before it)", tone.faint, { "text-anchor": "middle" }));
  return group;
}

function named(offsets: number[], i: number): string {
  const offset = offsets[i];
  if (offset === 0) return "the token itself";
  return `${Math.abs(offset)} token${Math.abs(offset) === 1 ? "" : "s"} ${offset < 0 ? "before" : "after"}`;
}

const nice = (value: number): number => [0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1].find((top) => top >= value) ?? 1;

const ROW = 21;

export const classesHeight = (app: App): number => (app.atlas.data.classes?.names.length ?? 0) * ROW + 4;

/** Share of the attention on each class of tokens. */
export function classesDrawing(app: App, place: number, width: number): SVGGElement {
  const { names, share, even } = app.atlas.data.classes!;
  const tone = toneOf(app);
  const values = share.values.subarray(place * names.length, (place + 1) * names.length);
  const [left, right] = [Math.min(124, width * 0.36), width - 52];
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
    if (even) group.append(box(x(even[i]) - 1, y + 2, 2, 16, tone.mark));
  }
  return group;
}
