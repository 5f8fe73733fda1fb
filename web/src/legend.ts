// What the colours mean: one scale for the whole page, on the page and in saved figures.

import { colour, css, hex, type Theme } from "./colour.ts";
import { el, svg } from "./dom.ts";
import { range } from "./reading.ts";

const digits = (value: number): string => String(Number(value.toPrecision(2)));
const TICKS = [0, 0.25, 0.5, 0.75, 1]; // places on the bar; the value there is the square

export const MEANING = "share of attention, square-root scale";

export function legend(theme: Theme, high: number): HTMLElement {
  const steps = 24;
  const stops = range(steps + 1).map((i) => css(colour(theme, (i / steps) ** 2 * high, high)));
  return el(
    "div",
    { class: "legend", role: "img", "aria-label": `Colour scale: ${MEANING}, from 0 to ${digits(high)}` },
    el("span", { class: "legend-unit" }, MEANING),
    el(
      "span",
      { class: "legend-body" },
      el("span", { class: "legend-bar", style: { background: `linear-gradient(90deg, ${stops.join(", ")})` } }),
      el("span", { class: "legend-ticks" }, ...TICKS.map((part) => el("span", { style: { left: `${part * 100}%` } }, digits(part * part * high)))),
    ),
  );
}

/** The same as a part of a figure. */
export function legendFigure(theme: Theme, high: number, x: number, y: number, ink: string): SVGElement {
  const [width, steps] = [180, 60];
  const step = width / steps;
  return svg(
    "g",
    { "font-size": 11, fill: ink },
    svg("text", { x, y: y + 9 }, MEANING),
    ...range(steps).map((i) =>
      svg("rect", { x: (x + 226 + i * step).toFixed(2), y, width: (step + 0.1).toFixed(2), height: 10, fill: hex(colour(theme, ((i + 0.5) / steps) ** 2 * high, high)) }),
    ),
    ...TICKS.map((part) => svg("text", { x: x + 226 + part * width, y: y + 23, "text-anchor": "middle" }, digits(part * part * high))),
  );
}
