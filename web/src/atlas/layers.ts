// What was measured of whole layers: one line per measure, from the embedding to the last layer.

import { el, svg } from "../dom.ts";
import { type Cell, saveControls, type Sheet } from "../save.ts";
import { any, type App, type Changed, type Panel } from "./app.ts";
import { canvas, line, shift, title, toneOf, write } from "./draw.ts";
import type { LayerMeasure } from "./data.ts";
import { axis, frame } from "./plot.ts";
import { unitOf } from "./text.ts";

const [WIDE, HIGH] = [560, 220];

export class LayersPanel implements Panel {
  readonly element: HTMLElement;
  private readonly body = el("div", { class: "layer-charts" });
  private width = WIDE;

  constructor(private readonly app: App) {
    const save = saveControls(app, { what: "the layers", part: () => "atlas-layers", figure: () => layersFigure(app), sheet: () => layersSheet(app) });
    this.element = el(
      "section",
      { class: "panel", "aria-labelledby": "h-layers" },
      el("div", { class: "panel-head" }, el("h2", { id: "h-layers" }, "Layer by layer"), save),
      this.body,
    );
    this.draw();
  }

  update(changed: Changed): void {
    if (any(changed, "theme")) this.draw();
  }

  shown(): void {
    new ResizeObserver(() => {
      const all = this.body.clientWidth;
      const width = Math.round(this.app.atlas.data.layers.length > 1 && all > 800 ? (all - 36) / 2 : Math.max(300, all));
      if (width === this.width) return;
      this.width = width;
      this.draw();
    }).observe(this.body);
  }

  private draw(): void {
    const { app, width } = this;
    const charts = app.atlas.data.layers.map((measure) => {
      const figure = canvas(app, width, HIGH);
      figure.setAttribute("role", "img");
      figure.setAttribute("aria-label", `${measure.label} by layers passed`);
      figure.append(layerDrawing(app, measure, width));
      const keys = el("p", { class: "line-keys" }, el("span", { class: "line-key" }, measure.label), el("span", { class: "line-key ground" }, measure.baselineName), measure.other && el("span", { class: "line-key second" }, "the other atlas"));
      return el("div", {}, el("h3", {}, el("bdi", {}, measure.label)), el("p", { class: "caption" }, measure.definition), figure, keys);
    });
    this.body.replaceChildren(...charts);
  }
}

function layerDrawing(app: App, measure: LayerMeasure, width: number): SVGGElement {
  const tone = toneOf(app);
  const { score, low, high, baseline, other } = measure;
  const numbers = [score, low, high, baseline, other ?? []].flat().map((value) => value ?? NaN);
  const x = axis([0, score.length - 1], 46, width - 12, Math.min(Math.floor(width / 50), score.length - 1), true);
  const y = axis(numbers, HIGH - 44, 10);
  const path = (values: (number | null)[]) =>
    values.map((value, i) => (value === null ? "" : `${i && values[i - 1] !== null ? "L" : "M"}${x.at(i).toFixed(1)} ${y.at(value).toFixed(1)}`)).join("");
  const group = svg("g", {}, frame(x, y, tone));
  const back = high.map((value, i) => (value === null || low[i] === null ? "" : `${i ? "L" : "M"}${x.at(i).toFixed(1)} ${y.at(value).toFixed(1)}`)).join("");
  const forth = low.map((value, i) => (value === null ? "" : `L${x.at(i).toFixed(1)} ${y.at(value).toFixed(1)}`)).reverse().join("");
  if (back) group.append(svg("path", { d: back + forth, fill: tone.line, "fill-opacity": 0.15 }));
  group.append(line(path(baseline), tone.faint, { "stroke-width": 1.75, "stroke-dasharray": "5 4" }));
  if (other) group.append(line(path(other), tone.mark, { "stroke-width": 2 }));
  group.append(line(path(score), tone.line, { "stroke-width": 2.25, "stroke-linejoin": "round" }));
  const steps = score.length > app.atlas.layers ? "layers passed (0: the embedding)" : "layer";
  group.append(write((46 + width - 12) / 2, HIGH - 8, `${steps}; ${unitOf(measure)} up`, tone.faint, { "text-anchor": "middle", "font-size": 11.5 }));
  return group;
}

function layersFigure(app: App): SVGSVGElement {
  const { layers } = app.atlas.data;
  const tone = toneOf(app);
  const figure = canvas(app, WIDE + 24, 64 + layers.length * (HIGH + 34), true);
  figure.append(title(app, "Layer by layer"));
  layers.forEach((measure, at) => {
    const y = 64 + at * (HIGH + 34);
    figure.append(write(16, y + 10, `${measure.label} (dashed: ${measure.baselineName})`, tone.ink, { "font-size": 12.5 }), shift(8, y + 20, layerDrawing(app, measure, WIDE)));
  });
  return figure;
}

function layersSheet({ atlas }: App): Sheet {
  const rows: Cell[][] = [];
  for (const { id, unit, score, low, high, baseline, other } of atlas.data.layers)
    score.forEach((value, i) => rows.push([id, unit, i, value, low[i], high[i], baseline[i], other ? other[i] : null]));
  return { header: ["measure", "unit", "layer", "score", "low", "high", "baseline", "other"], rows };
}
