// Drawings of a part of a long text's heat map: its cells as pixels or rectangles, and what stands around them.

import type { App } from "./app.ts";
import { name } from "./bidi.ts";
import { colour, hex, shade, type Theme } from "./colour.ts";
import { svg } from "./dom.ts";
import { INK } from "./figure.ts";
import { legendFigure } from "./legend.ts";
import type { Grid, Part } from "./levels.ts";
import { range, type Reading } from "./reading.ts";
import { followed, paired } from "./text-model.ts";

const NAMED = 40; // more tokens than this in view get positions instead of names

/** Where the map stands inside its drawing, a square of `side` units. */
export interface Frame {
  side: number;
  left: number;
  top: number;
  map: number;
  named: boolean;
}

export function frameOf(part: Part, reading: Reading): Frame {
  const named = part.span <= NAMED;
  const margin = named ? 84 : 24 + 6.5 * String(reading.length).length;
  return { side: 520, left: margin, top: margin, map: 520 - margin - 6, named };
}

/** The colours of the whole scale, by the square root of the share: 256 of them as the bytes of a picture. */
function tableOf(theme: Theme): Uint32Array {
  const bytes = new Uint8ClampedArray(4 * 256);
  for (let i = 0; i < 256; i++) bytes.set([...shade(theme, i / 255), 255], 4 * i);
  return new Uint32Array(bytes.buffer);
}

const tables = new Map<Theme, Uint32Array>();
const cells = document.createElement("canvas");

/** Draw the cells of a part into a canvas that stands over the map. */
export function paintGrid(canvas: HTMLCanvasElement, frame: Frame, grid: Grid, part: Part, width: number, theme: Theme, high: number): void {
  const { side, values, size, row, column } = grid;
  const table = tables.get(theme) ?? tables.set(theme, tableOf(theme)).get(theme)!;
  const picture = new ImageData(side, side);
  const pixels = new Uint32Array(picture.data.buffer);
  for (let at = 0; at < values.length; at++) pixels[at] = table[Math.round(255 * Math.sqrt(Math.min(1, Math.max(0, values[at] / high))))];
  cells.width = cells.height = side;
  cells.getContext("2d")!.putImageData(picture, 0, 0);
  const device = Math.max(1, Math.round(((width * frame.map) / frame.side) * (devicePixelRatio || 1)));
  if (canvas.width !== device) canvas.width = canvas.height = device;
  for (const [property, value] of [["left", frame.left], ["top", frame.top], ["width", frame.map], ["height", frame.map]] as const)
    canvas.style.setProperty(property, `${(100 * value) / frame.side}%`);
  const context = canvas.getContext("2d")!;
  context.imageSmoothingEnabled = false;
  const scale = device / part.span;
  context.fillStyle = hex(shade(theme, 0));
  context.fillRect(0, 0, device, device);
  context.drawImage(cells, (column * size - part.key) * scale, (row * size - part.query) * scale, side * size * scale, side * size * scale);
}

/** The frame of the map, its ticks or names, and the row or column of the selected token. */
export function axes(app: App, text: number, part: Part, frame: Frame): SVGElement[] {
  const { state } = app;
  const tone = INK[state.theme];
  const { left, top, map } = frame;
  const [token, other] = [followed(app, text), paired(app, text)];
  const [query, key] = state.direction === "from" ? [token, other] : [other, token];
  const scale = map / part.span;
  const around = svg("rect", { x: left, y: top, width: map, height: map, fill: "none", stroke: tone.faint, "stroke-opacity": 0.45 });
  const corner = [svg("text", { x: 4, y: 14, fill: tone.faint, "font-size": 11 }, "looks ↓"), svg("text", { x: 4, y: 28, fill: tone.faint, "font-size": 11 }, "at →")];
  const band = (at: number | null, across: boolean) => {
    if (at === null) return [];
    const start = Math.max(0, (at - (across ? part.query : part.key)) * scale);
    const end = Math.min(map, (at + 1 - (across ? part.query : part.key)) * scale);
    if (end < 0 || start > map) return [];
    const place = { from: Math.min(start, map - 2), thick: Math.max(2, end - start) };
    const box = across ? { x: left, y: top + place.from, width: map, height: place.thick } : { x: left + place.from, y: top, width: place.thick, height: map };
    return [svg("rect", { class: "band", fill: "none", stroke: tone.mark, "stroke-width": 1.5, ...box })];
  };
  const bands = state.direction === "from" ? band(token, true) : band(token, false);
  const labels = frame.named ? names(app.readings[text], part, frame, tone, query, key) : ticks(part, frame, tone);
  return [around, ...corner, ...bands, ...labels];
}

type Tone = (typeof INK)["light"];

function ticks(part: Part, { left, top, map }: Frame, tone: Tone): SVGElement[] {
  const step = nice(part.span / 6);
  const scale = map / part.span;
  const marks = (first: number) => range(Math.floor(part.span / step) + 1).map((n) => (Math.ceil(first / step) + n) * step).filter((at) => at <= first + part.span);
  const text = { fill: tone.faint, "font-size": 11 };
  return [
    ...marks(part.query).flatMap((at) => {
      const y = top + (at - part.query) * scale;
      return [svg("path", { d: `M${left - 4} ${y.toFixed(1)}h4`, stroke: tone.faint }), svg("text", { x: left - 7, y: (y + 4).toFixed(1), "text-anchor": "end", ...text }, at.toLocaleString("en"))];
    }),
    ...marks(part.key).flatMap((at) => {
      const x = left + (at - part.key) * scale;
      const end = x > left + map - 16;
      return [svg("path", { d: `M${x.toFixed(1)} ${top - 4}v4`, stroke: tone.faint }), svg("text", { x: x.toFixed(1), y: top - 8, "text-anchor": end ? "end" : "middle", ...text }, at.toLocaleString("en"))];
    }),
  ];
}

function names(reading: Reading, part: Part, { left, top, map }: Frame, tone: Tone, query: number | null, key: number | null): SVGElement[] {
  const scale = map / part.span;
  const font = Math.min(12.5, Math.max(7.5, scale * 0.8));
  const most = Math.floor(74 / (font * 0.6));
  const written = (token: number) => {
    const whole = reading.spelled(token);
    return name(whole.length > most ? `${whole.slice(0, most - 1)}…` : whole);
  };
  const look = (strong: boolean) => ({ fill: strong ? tone.mark : tone.ink, "font-weight": strong ? 700 : 400, "font-size": font });
  const inView = (first: number) => range(Math.ceil(part.span) + 1).map((n) => Math.floor(first) + n).filter((token) => token + 0.5 >= first && token + 0.5 < first + part.span && token < reading.length);
  const at = (token: number, first: number) => (token + 0.5 - first) * scale + font * 0.35;
  return [
    ...inView(part.query).map((token) => svg("text", { x: left - 5, y: (top + at(token, part.query)).toFixed(1), "text-anchor": "end", ...look(token === query) }, written(token))),
    ...inView(part.key).map((token) => svg("text", { transform: `translate(${(left + at(token, part.key)).toFixed(1)} ${top - 5}) rotate(-90)`, ...look(token === key) }, written(token))),
  ];
}

function nice(step: number): number {
  const power = 10 ** Math.floor(Math.log10(Math.max(1, step)));
  return [1, 2, 5, 10].map((m) => m * power).find((s) => s >= step) ?? power;
}

/** A part of the map as a drawing for a file, with the scale and a sentence about its cells. */
export function zoomFigure(app: App, text: number, part: Part, grid: Grid, note: string, high: number): SVGSVGElement {
  const { theme, layer, head } = app.state;
  const reading = app.readings[text];
  const frame = frameOf(part, reading);
  const tone = INK[theme];
  const lines = [`${app.page.model.name} · head ${layer}.${head}`, ...note.split(/(?<=[:;.]) /)];
  const height = frame.side + 16 * lines.length + 48;
  const { left, top, map, side } = frame;
  const scale = map / part.span;
  const clip = (from: number) => Math.min(map, Math.max(0, from));
  const rects: SVGElement[] = [];
  for (let i = 0; i < grid.side; i++)
    for (let j = 0; j < grid.side; j++) {
      const value = grid.values[i * grid.side + j];
      if (!(value / high > 4e-6)) continue; // of the colour of the ground
      const edges = (at: number, first: number) => [clip((at * grid.size - first) * scale), clip(((at + 1) * grid.size - first) * scale)];
      const [y, x] = [edges(grid.row + i, part.query), edges(grid.column + j, part.key)];
      if (y[1] <= y[0] || x[1] <= x[0]) continue;
      rects.push(svg("rect", { x: (left + x[0]).toFixed(2), y: (top + y[0]).toFixed(2), width: (x[1] - x[0] + 0.05).toFixed(2), height: (y[1] - y[0] + 0.05).toFixed(2), fill: hex(colour(theme, value, high)) }));
    }
  return svg(
    "svg",
    { viewBox: `0 0 ${side} ${height}`, xmlns: "http://www.w3.org/2000/svg", "font-family": "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif", "font-size": 11 },
    svg("rect", { width: side, height, fill: tone.page }),
    svg("rect", { x: left, y: top, width: map, height: map, fill: hex(shade(theme, 0)) }),
    ...rects,
    ...axes(app, text, part, frame),
    ...lines.map((line, n) => svg("text", { x: 8, y: side + 16 + 16 * n, fill: tone.faint, "font-size": 11 }, line)),
    legendFigure(theme, high, 8, side + 16 * lines.length + 14, tone.faint),
  );
}
