// Save a view as a drawing, a bitmap or a table: made here, nothing is sent anywhere.

import type { App } from "./app.ts";
import { type Sheet, toCsv } from "./csv.ts";
import { el } from "./dom.ts";

function offer(blob: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const SIGNS = new RegExp("[\\u0000-\\u0008\\u000b\\u000c\\u000e-\\u001f\\ufffe\\uffff]", "g"); // not allowed in XML

function source(figure: SVGSVGElement): { source: string; width: number; height: number } {
  const { width, height } = figure.viewBox.baseVal;
  figure.setAttribute("width", String(width));
  figure.setAttribute("height", String(height));
  return { source: new XMLSerializer().serializeToString(figure).replace(SIGNS, "\ufffd"), width, height };
}

const saveSvg = (figure: SVGSVGElement, name: string): void =>
  offer(new Blob([source(figure).source], { type: "image/svg+xml" }), `${name}.svg`);

async function savePng(figure: SVGSVGElement, name: string): Promise<void> {
  const { source: drawing, width, height } = source(figure);
  const image = new Image();
  image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(drawing);
  await image.decode();
  const canvas = document.createElement("canvas");
  const scale = Math.min(2, 16_000 / Math.max(width, height));
  canvas.width = width * scale;
  canvas.height = height * scale;
  canvas.getContext("2d")!.drawImage(image, 0, 0, canvas.width, canvas.height);
  const blob = await new Promise<Blob | null>((done) => canvas.toBlob(done, "image/png"));
  if (blob) offer(blob, `${name}.png`);
}

/** What a view can be saved as; `part` names it in the file's name. */
export interface Saved {
  what: string;
  part: () => string;
  figure: () => SVGSVGElement;
  sheet: () => Sheet;
}

/** The buttons that save a view. */
export function saveControls(app: App, { what, part, figure, sheet }: Saved): HTMLElement {
  const name = () => `limelight-${app.page.model.name}-${part()}`.replace(/[^\p{L}\p{N}._-]+/gu, "-");
  const ways: [string, string, () => void][] = [
    ["SVG", "as a drawing", () => saveSvg(figure(), name())],
    ["PNG", "as a picture", () => void savePng(figure(), name())],
    ["CSV", "as a table", () => offer(new Blob([toCsv(sheet())], { type: "text/csv;charset=utf-8" }), `${name()}.csv`)],
  ];
  return el(
    "div",
    { class: "save", role: "group", "aria-label": `Save ${what}`, "data-unsaved": true },
    ...ways.map(([label, how, click]) =>
      el("button", { type: "button", class: "plain", title: `Save ${what} ${how}`, "aria-label": `Save ${what} as ${label}`, on: { click } }, label),
    ),
  );
}
