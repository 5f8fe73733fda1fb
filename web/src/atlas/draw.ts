// Pieces of figures: every colour stands in the element itself, so that a saved figure needs no style sheet.

import { svg } from "../dom.ts";
import type { App } from "./app.ts";
import { INK } from "./scale.ts";

export const FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif";

export type Tone = (typeof INK)["light"];

export const toneOf = (app: App): Tone => INK[app.state.theme];

/** An empty figure. `page`: with the card's colour behind it, for a file. */
export function canvas(app: App, width: number, height: number, page = false): SVGSVGElement {
  const tone = toneOf(app);
  const figure = svg("svg", { viewBox: `0 0 ${width} ${Math.ceil(height)}`, xmlns: "http://www.w3.org/2000/svg", "font-family": FONT, "font-size": 12 });
  if (page) figure.append(svg("rect", { width, height: Math.ceil(height), fill: tone.page }));
  return figure;
}

export const write = (x: number, y: number, text: string, fill: string, more: Record<string, unknown> = {}): SVGTextElement =>
  svg("text", { x: x.toFixed(1), y: y.toFixed(1), fill, ...more }, text);

export const line = (d: string, stroke: string, more: Record<string, unknown> = {}): SVGPathElement =>
  svg("path", { d, stroke, fill: "none", ...more });

export const box = (x: number, y: number, width: number, height: number, fill: string, more: Record<string, unknown> = {}): SVGRectElement =>
  svg("rect", { x: x.toFixed(2), y: y.toFixed(2), width: Math.max(0, width).toFixed(2), height: Math.max(0, height).toFixed(2), fill, ...more });

export const shift = (x: number, y: number, ...children: SVGElement[]): SVGGElement =>
  svg("g", { transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})` }, ...children);

/** A text of at most so many characters. */
export const clip = (text: string, most: number): string => {
  const characters = [...text];
  return characters.length > most ? characters.slice(0, most - 1).join("") + "…" : text;
};

/** The title of a saved figure: what it shows, and of which model and corpus. */
export function title(app: App, text: string): SVGGElement {
  const { model, corpus } = app.atlas.data;
  const tone = toneOf(app);
  return svg(
    "g",
    {},
    write(16, 26, text, tone.ink, { "font-size": 15, "font-weight": 650 }),
    write(16, 44, clip(`${model.name} · ${corpus.name} · Limelight`, 80), tone.faint, { "font-size": 11.5 }),
  );
}
