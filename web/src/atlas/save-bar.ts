// The buttons that save a view: its figure as SVG or PNG, its numbers as CSV.

import { el } from "../dom.ts";
import { type Cell, fileName, saveCsv, savePng, saveSvg } from "../export.ts";
import type { App } from "./app.ts";

interface Saved {
  name: string; // of the view, for readers of the page
  file: () => (string | number)[]; // parts of the file's name
  figure: () => SVGSVGElement;
  rows: () => Cell[][];
}

export function saveBar(app: App, { name, file, figure, rows }: Saved): HTMLElement {
  const named = (ending: string) => fileName(ending, app.atlas.data.model.name, "atlas", ...file());
  const button = (text: string, click: () => unknown) =>
    el("button", { type: "button", class: "plain", "aria-label": `Save ${name} as ${text}`, on: { click } }, text);
  return el(
    "div",
    { class: "save", role: "group", "aria-label": `Save ${name}` },
    el("span", { class: "quiet", "aria-hidden": "true" }, "Save"),
    button("SVG", () => saveSvg(figure(), named("svg"))),
    button("PNG", () => savePng(figure(), named("png"))),
    button("CSV", () => saveCsv(rows(), named("csv"))),
  );
}
