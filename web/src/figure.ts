// One head's map as an SVG figure: on the page with a bitmap inside, as a saved file with true rectangles.

import type { App } from "./app.ts";
import { colour, hex, type Theme } from "./colour.ts";
import { name } from "./bidi.ts";
import { svg } from "./dom.ts";
import { paint } from "./grid.ts";
import { legendFigure } from "./legend.ts";
import { range, type Reading } from "./reading.ts";
import { followed, paired } from "./text-model.ts";

export const SIDE = 520;
const LABELLED = 40; // more tokens than this get positions instead of names

export interface Layout {
  left: number;
  top: number;
  map: number;
  shown: number[];
  cell: number;
  font: number;
}

const clip = (text: string, most = 12): string => (text.length > most ? text.slice(0, most - 1) + "…" : text);

export function place(app: App, reading = app.reading): Layout {
  const shown = reading.shown(app.state.hide);
  const named = reading.exact && shown.length <= LABELLED;
  const longest = named ? Math.max(...shown.map((i) => clip(reading.spelled(i)).length)) : 5;
  const font = named ? Math.min(13, Math.max(8, 300 / shown.length)) : 11;
  const margin = Math.max(40, longest * font * 0.62 + 14);
  const map = SIDE - margin - 6;
  return { left: margin, top: margin, map, shown, cell: map / shown.length, font };
}

export const INK: Record<Theme, { ink: string; faint: string; mark: string; page: string; line: string }> = {
  light: { ink: "#1d1e22", faint: "#66676e", mark: "#c2410c", page: "#ffffff", line: "#1f5186" },
  dark: { ink: "#ecebe4", faint: "#a3a39d", mark: "#ff9d5c", page: "#17181d", line: "#e6dd6e" },
};

/** Draw the head that is shown, over one text. `vector`: rectangles, a title and the scale, for a file. */
export function drawFigure(app: App, vector: boolean, text = app.state.text): { figure: SVGSVGElement; layout: Layout } {
  const { state } = app;
  const reading = app.readings[text];
  const layout = place(app, reading);
  const { left, top, map, cell, font, shown } = layout;
  const tone = INK[state.theme];
  const high = app.high(state.layer, state.head);
  const values = reading.map(state.layer, state.head, state.hide);
  const tint = (value: number) => colour(state.theme, value, high);
  const footer = vector ? 66 : 0;
  const figure = svg("svg", {
    viewBox: `0 0 ${SIDE} ${SIDE + footer}`,
    xmlns: "http://www.w3.org/2000/svg",
    "font-family": "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif",
    "font-size": font,
  });
  if (vector) figure.append(svg("rect", { width: SIDE, height: SIDE + footer, fill: tone.page }));
  if (vector)
    shown.forEach((row, i) =>
      shown.forEach((column, j) =>
        figure.append(
          svg("rect", {
            x: (left + j * cell).toFixed(2),
            y: (top + i * cell).toFixed(2),
            width: (cell + 0.05).toFixed(2),
            height: (cell + 0.05).toFixed(2),
            fill: hex(tint(values[row * reading.side + column])),
          }),
        ),
      ),
    );
  else {
    const canvas = document.createElement("canvas");
    paint(canvas, values, shown, reading.side, tint, shown.length);
    figure.append(
      svg("image", { href: canvas.toDataURL(), x: left, y: top, width: map, height: map, class: "pixels", preserveAspectRatio: "none" }),
    );
  }
  figure.append(svg("rect", { x: left, y: top, width: map, height: map, fill: "none", stroke: tone.faint, "stroke-opacity": 0.45 }));
  label(figure, reading, layout, tone, followed(app, text), paired(app, text), state.direction === "from");
  figure.append(
    svg("text", { x: 4, y: 14, fill: tone.faint, "font-size": 11 }, "looks ↓"),
    svg("text", { x: 4, y: 28, fill: tone.faint, "font-size": 11 }, "at →"),
  );
  if (vector) {
    const about = `${app.page.model.name} · head ${state.layer}.${state.head} · ${reading.whole}${shown.length < reading.side ? ", special tokens left out" : ""}`;
    figure.append(
      svg("text", { x: 8, y: SIDE + 20, fill: tone.faint, "font-size": 11 }, about),
      legendFigure(state.theme, high, 8, SIDE + 32, tone.faint),
    );
  }
  return { figure, layout };
}

/** The same head as lines from the tokens that look to the tokens looked at: thicker is more. */
export function drawLines(app: App, vector: boolean, text = app.state.text): SVGSVGElement {
  const { state } = app;
  const reading = app.readings[text];
  const token = followed(app, text);
  const tone = INK[state.theme];
  const shown = reading.shown(state.hide);
  const step = Math.min(26, Math.max(13, 620 / shown.length));
  const height = 34 + shown.length * step + (vector ? 30 : 6);
  const [left, right] = [150, SIDE - 150];
  const y = (i: number) => 34 + (i + 0.5) * step;
  const high = app.high(state.layer, state.head);
  const figure = svg("svg", {
    viewBox: `0 0 ${SIDE} ${height.toFixed(0)}`,
    xmlns: "http://www.w3.org/2000/svg",
    "font-family": "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif",
    "font-size": Math.min(13.5, step * 0.78),
  });
  if (vector) figure.append(svg("rect", { width: SIDE, height, fill: tone.page }));
  const [query, key] = state.direction === "from" ? [token, null] : [null, token];
  const lines: SVGElement[] = [];
  shown.forEach((row, i) =>
    shown.forEach((column, j) => {
      const weight = reading.weight(state.layer, state.head, row, column);
      const part = Math.min(1, weight / high);
      if (part < 0.02) return;
      const followed = (query === null && key === null) || row === query || column === key;
      const curve = `M${left + 8} ${y(i).toFixed(1)}C${SIDE / 2} ${y(i).toFixed(1)} ${SIDE / 2} ${y(j).toFixed(1)} ${right - 8} ${y(j).toFixed(1)}`;
      const line = svg("path", {
        d: curve,
        fill: "none",
        stroke: followed ? tone.line : tone.faint,
        "stroke-width": (0.8 + 5 * part).toFixed(2),
        "stroke-opacity": ((followed ? 0.45 : 0.16) + (followed ? 0.5 : 0.4) * part).toFixed(2),
        "data-pair": `${row} ${column}`,
      });
      if (followed) lines.push(line);
      else lines.unshift(line);
    }),
  );
  figure.append(
    svg("text", { x: left, y: 16, fill: tone.faint, "font-size": 11.5, "text-anchor": "end" }, "looks"),
    svg("text", { x: right, y: 16, fill: tone.faint, "font-size": 11.5 }, "is looked at"),
    ...lines,
  );
  shown.forEach((position, i) => {
    const word = name(clip(reading.spelled(position), 18));
    const text = (x: number, anchor: string, side: string, strong: boolean) =>
      svg(
        "text",
        { x, y: y(i) + 4.5, "text-anchor": anchor, fill: strong ? tone.mark : tone.ink, "font-weight": strong ? 700 : 400, "data-token": position, "data-side": side },
        word,
      );
    figure.append(text(left, "end", "from", position === query), text(right, "start", "to", position === key));
  });
  if (vector) figure.append(svg("text", { x: 8, y: height - 10, fill: tone.faint, "font-size": 11 }, `${app.page.model.name} · head ${state.layer}.${state.head} · width and opacity: share of attention`));
  return figure;
}

/** Lines are drawn for texts whose tokens fit below one another. */
export const canDrawLines = (app: App): boolean => app.readings.every((reading) => reading.exact && reading.length <= 64);

function label(
  figure: SVGSVGElement,
  reading: Reading,
  { left, top, map, cell, font, shown }: Layout,
  tone: (typeof INK)["light"],
  token: number | null,
  other: number | null,
  from: boolean,
): void {
  const named = reading.exact && shown.length <= LABELLED;
  const [query, key] = from ? [token, other] : [other, token];
  const word = (x: number, y: number, written: string, strong: boolean, more: Record<string, unknown>) =>
    svg("text", { x, y, fill: strong ? tone.mark : tone.ink, "font-weight": strong ? 700 : 400, ...more }, written);
  if (named) {
    shown.forEach((position, i) => {
      const middle = (i + 0.5) * cell;
      const label = name(clip(reading.spelled(position)));
      figure.append(
        word(left - 6, top + middle + font * 0.35, label, position === query, { "text-anchor": "end" }),
        word(0, 0, label, position === key, {
          transform: `translate(${(left + middle + font * 0.35).toFixed(1)} ${top - 6}) rotate(-90)`,
        }),
      );
    });
    return;
  }
  const step = nice(reading.length / 6);
  const scale = reading.exact ? shown.length : reading.length;
  for (const tick of range(Math.ceil(scale / step)).map((i) => i * step)) {
    const at = (tick / scale) * map;
    figure.append(
      svg("path", { d: `M${left - 4} ${top + at}h4M${left + at} ${top - 4}v4`, stroke: tone.faint }),
      word(left - 7, top + at + 4, String(tick), false, { "text-anchor": "end", fill: tone.faint }),
      word(left + at, top - 8, String(tick), false, { "text-anchor": at > map - 12 ? "end" : "middle", fill: tone.faint }),
    );
  }
}

function nice(step: number): number {
  const power = 10 ** Math.floor(Math.log10(Math.max(1, step)));
  return [1, 2, 5, 10].map((m) => m * power).find((s) => s >= step) ?? power;
}

/** Where the selected token's row (or column) lies, as a rectangle over the map. */
export function band(app: App, layout: Layout, text: number): { x: number; y: number; width: number; height: number } | null {
  const { direction } = app.state;
  const token = followed(app, text);
  if (token === null) return null;
  const at = layout.shown.indexOf(Math.floor(token / app.readings[text].data.map.block));
  if (at < 0) return null;
  const { left, top, map, cell } = layout;
  const thick = Math.max(cell, 2);
  return direction === "from"
    ? { x: left, y: top + at * cell, width: map, height: thick }
    : { x: left + at * cell, y: top, width: thick, height: map };
}
