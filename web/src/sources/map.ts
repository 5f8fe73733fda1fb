// The attention of every written word on every part of the source as a map, for the heads that are shown.

import { percent, show, times } from "../app.ts";
import { arrow, name } from "../bidi.ts";
import { colour, hex, type Rgb, type Theme } from "../colour.ts";
import { el, svg } from "../dom.ts";
import { legend, legendFigure } from "../legend.ts";
import { range } from "../reading.ts";
import { type Cell, saveControls, type Sheet } from "../save.ts";
import { hideTip, tip } from "../tip.ts";
import type { Changed, Panel, SourceApp } from "./app.ts";

const SIDE = 560;
const LABELLED = 40; // more words than this get no names
const TALLEST = 520; // of a map without names
const FONT = "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif";
const STEPS: Record<string, [number, number]> = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

const INK: Record<Theme, { ink: string; faint: string; mark: string; page: string }> = {
  light: { ink: "#1d1e22", faint: "#66676e", mark: "#c2410c", page: "#ffffff" },
  dark: { ink: "#ecebe4", faint: "#a3a39d", mark: "#ff9d5c", page: "#17181d" },
};

/** Draw rows of weights into a canvas, one pixel per cell, or per group of cells where there are many. */
export function paintMap(canvas: HTMLCanvasElement, rows: Float32Array[], columns: number, tint: (value: number) => Rgb, tall = Infinity, wide = Infinity): void {
  const [height, width] = [Math.max(1, Math.min(rows.length, tall)), Math.max(1, Math.min(columns, wide))];
  canvas.width = width;
  canvas.height = height;
  const strongest = new Float32Array(width * height);
  rows.forEach((row, i) => {
    const y = Math.floor((i * height) / rows.length) * width;
    row.forEach((value, j) => {
      const at = y + Math.floor((j * width) / columns);
      if (value > strongest[at]) strongest[at] = value;
    });
  });
  const picture = new ImageData(width, height);
  strongest.forEach((value, at) => picture.data.set([...tint(value), 255], 4 * at));
  canvas.getContext("2d")!.putImageData(picture, 0, 0);
}

const clip = (text: string, most = 14): string => (text.length > most ? text.slice(0, most - 1) + "…" : text);

interface Layout {
  left: number;
  top: number;
  width: number;
  height: number;
  line: number; // height of a row
  column: number;
}

export class CrossMapPanel implements Panel {
  readonly element: HTMLElement;
  private readonly title = el("h2", { id: "h-cross-map" });
  private readonly frame = el("div", { class: "figure" });
  private readonly scale = el("div", { class: "legend-line" });
  private readonly caption = el("p", { class: "caption" });
  private layout!: Layout;
  private cursor: [number, number] = [0, 0];
  private outline = svg("rect", { class: "cursor", visibility: "hidden" });

  constructor(private readonly app: SourceApp) {
    const save = saveControls(app, {
      what: "the map",
      part: () => `cross-${app.state.over === "head" ? `${app.state.layer}.${app.state.head}` : app.state.over}`,
      figure: () => this.draw(true),
      sheet: () => this.sheet(),
    });
    this.element = el(
      "section",
      { class: "panel", "aria-labelledby": "h-cross-map" },
      el("div", { class: "panel-head" }, this.title, save),
      this.caption,
      this.frame,
      el("div", { class: "under" }, this.scale),
    );
    this.redraw();
  }

  update(changed: Changed): void {
    if (!changed.has("hover")) this.redraw();
  }

  private get high(): number {
    const { cross, heads } = this.app;
    if (cross.source) return 1;
    return Math.max(1e-6, ...range(cross.count).map((word) => Math.max(...cross.row(word, heads))));
  }

  private redraw(): void {
    const { app } = this;
    const { over, layer, head } = app.state;
    this.title.textContent = over === "head" ? `Head ${layer}.${head}` : over === "layer" ? `Layer ${layer}, mean of its heads` : app.heads.length === 1 ? "The head that aligns" : "The heads that align";
    const seen = app.cross.data.aligning.map((place) => app.nameOf(place)).join(", ");
    this.caption.textContent = `Each row: where the written word looks in the source, ${app.where}${over === "aligning" && app.heads.length > 1 ? ` (${seen})` : ""}. Click a cell to select its word.`;
    const figure = this.draw(false);
    this.outline = svg("rect", { class: "cursor", visibility: "hidden" });
    figure.append(this.outline);
    for (const [key, value] of Object.entries({ tabindex: 0, "data-focus": "cross map", role: "img", "aria-label": `Map of the cross-attention, ${app.where}. Arrow keys read the cells, Enter selects.` })) figure.setAttribute(key, String(value));
    this.listen(figure);
    this.frame.replaceChildren(figure);
    this.scale.replaceChildren(legend(app.state.theme, this.high));
  }

  private place(): Layout {
    const { cross } = this.app;
    const named = cross.count <= LABELLED;
    const longest = (texts: string[]) => Math.max(1, ...texts.map((text) => clip(text).length));
    const left = named ? Math.max(40, 12 + 7 * longest(cross.words.units)) : 40;
    const columns = cross.source && cross.parts <= LABELLED ? Math.max(40, 12 + 7 * longest(cross.source.units)) : 26;
    const width = SIDE - left - 6;
    const line = named ? Math.max(13, cross.source ? Math.min(26, width / cross.parts) : 16) : Math.max(1, TALLEST / cross.count);
    return { left, top: columns, width, height: line * Math.max(1, cross.count), line, column: width / cross.parts };
  }

  /** Draw the map; `vector`: with a note and the scale, for a file. */
  private draw(vector: boolean): SVGSVGElement {
    const { app } = this;
    const { cross, state } = app;
    const layout = (this.layout = this.place());
    const tone = INK[state.theme];
    const bottom = layout.top + layout.height + (cross.source ? 6 : 26);
    const total = bottom + (vector ? 62 : 0);
    const figure = svg("svg", { viewBox: `0 0 ${SIDE} ${total.toFixed(0)}`, xmlns: "http://www.w3.org/2000/svg", "font-family": FONT, "font-size": 12 });
    if (vector) figure.append(svg("rect", { width: SIDE, height: total, fill: tone.page }));
    const rows = range(cross.count).map((word) => cross.row(word, app.heads));
    const high = this.high;
    const { left, top, width, height, line, column } = layout;
    if (vector && cross.source)
      rows.forEach((row, i) =>
        row.forEach((value, j) => figure.append(svg("rect", { x: (left + j * column).toFixed(2), y: (top + i * line).toFixed(2), width: (column + 0.05).toFixed(2), height: (line + 0.05).toFixed(2), fill: hex(colour(state.theme, value, high)) }))),
      );
    else {
      const canvas = document.createElement("canvas");
      paintMap(canvas, rows, cross.parts, (value) => colour(state.theme, value, high));
      figure.append(svg("image", { href: canvas.toDataURL(), x: left, y: top, width, height, class: "pixels", preserveAspectRatio: "none" }));
    }
    figure.append(svg("rect", { x: left, y: top, width, height, fill: "none", stroke: tone.faint, "stroke-opacity": 0.45 }));
    this.label(figure, tone);
    if (state.word !== null) figure.append(svg("rect", { class: "band", x: left, y: top + state.word * line, width, height: line, fill: "none", stroke: tone.mark, "stroke-width": 2 }));
    if (state.part !== null) figure.append(svg("rect", { class: "band", x: left + state.part * column, y: top, width: column, height, fill: "none", stroke: tone.mark, "stroke-width": 2 }));
    if (vector)
      figure.append(
        svg("text", { x: 8, y: bottom + 16, fill: tone.faint, "font-size": 11 }, `${app.page.model.name} · cross-attention, ${app.where}`),
        legendFigure(state.theme, high, 8, bottom + 28, tone.faint),
      );
    return figure;
  }

  private label(figure: SVGSVGElement, tone: (typeof INK)["light"]): void {
    const { cross, state } = this.app;
    const { left, top, width, height, line, column } = this.layout;
    if (cross.count <= LABELLED)
      cross.words.units.forEach((word, i) => figure.append(svg("text", { x: left - 6, y: top + (i + 0.5) * line + 4, "text-anchor": "end", fill: i === state.word ? tone.mark : tone.ink, "font-weight": i === state.word ? 700 : 400 }, name(clip(word)))));
    if (cross.source && cross.parts <= LABELLED)
      cross.source.units.forEach((part, j) =>
        figure.append(svg("text", { transform: `translate(${(left + (j + 0.5) * column + 4).toFixed(1)} ${top - 6}) rotate(-90)`, fill: j === state.part ? tone.mark : tone.ink, "font-weight": j === state.part ? 700 : 400 }, name(clip(part)))),
      );
    if (!cross.source) {
      const step = [0.5, 1, 2, 5, 10].find((seconds) => (seconds / cross.duration) * width >= 44) ?? 10;
      for (const n of range(Math.floor(cross.duration / step) + 1)) {
        const x = left + ((n * step) / cross.duration) * width;
        figure.append(svg("path", { d: `M${x.toFixed(1)} ${top + height}v4`, stroke: tone.faint }), svg("text", { x: x.toFixed(1), y: top + height + 17, fill: tone.faint, "font-size": 11, "text-anchor": x > SIDE - 20 ? "end" : "middle" }, n ? String(n * step) : "0 s"));
      }
    }
  }

  private sheet(): Sheet {
    const { cross, heads, where } = this.app;
    const rows = cross.words.units.flatMap((text, word) => Array.from(cross.row(word, heads), (weight, part): Cell[] => [word, text, part, cross.name(part), weight, cross.even(part)]));
    return { header: ["index", "word", "source index", "source", `weight, ${where}`, "even"], rows };
  }

  // --- Events ---

  private listen(figure: SVGSVGElement): void {
    const at = (event: MouseEvent): [number, number] | null => {
      const { left, top, line, column } = this.layout;
      const box = figure.getBoundingClientRect();
      const unit = SIDE / box.width;
      const i = Math.floor(((event.clientY - box.top) * unit - top) / line);
      const j = Math.floor(((event.clientX - box.left) * unit - left) / column);
      const { cross } = this.app;
      return i >= 0 && j >= 0 && i < cross.count && j < cross.parts ? [i, j] : null;
    };
    figure.addEventListener("pointermove", (event) => {
      const cell = at(event);
      this.point(cell);
      if (cell) tip(event.clientX, event.clientY, this.describe(cell));
      else hideTip();
    });
    figure.addEventListener("pointerleave", () => {
      this.point(null);
      hideTip();
    });
    figure.addEventListener("click", (event) => {
      const cell = at(event);
      if (cell) this.app.select(cell[0]);
    });
    figure.addEventListener("keydown", (event) => {
      if (event.key === "Enter") return this.app.select(this.cursor[0]);
      const step = STEPS[event.key];
      if (!step) return;
      const { cross } = this.app;
      const within = (value: number, count: number) => Math.min(count - 1, Math.max(0, value));
      this.point([within(this.cursor[0] + step[0], cross.count), within(this.cursor[1] + step[1], cross.parts)]);
      this.app.say(this.describe(this.cursor).join(", "));
      event.preventDefault();
    });
  }

  private describe([word, part]: [number, number]): string[] {
    const { cross, heads } = this.app;
    const weight = cross.row(word, heads)[part];
    const even = cross.even(part);
    return [arrow(cross.words.units[word], cross.name(part)), `${show(weight)}  (even ${show(even)}, ${times(weight, even)})`, `${percent(weight)} of its attention to the source`];
  }

  private point(cell: [number, number] | null): void {
    this.outline.setAttribute("visibility", cell ? "visible" : "hidden");
    if (!cell) return;
    this.cursor = cell;
    const { left, top, line, column } = this.layout;
    for (const [key, value] of Object.entries({ x: left + cell[1] * column, y: top + cell[0] * line, width: Math.max(1, column), height: line })) this.outline.setAttribute(key, value.toFixed(2));
  }
}
