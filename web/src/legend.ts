// What the colours mean, with the unit.

import { colour, css, type Theme } from "./colour.ts";
import { el } from "./dom.ts";

const digits = (value: number): string =>
  value === 0 ? "0" : value >= 10 ? value.toFixed(0) : value >= 0.1 ? value.toFixed(2) : value.toFixed(3);

export function legend(theme: Theme, high: number, unit: string): HTMLElement {
  const steps = 24;
  const stops = Array.from({ length: steps + 1 }, (_, i) => css(colour(theme, (i / steps) ** 2 * high, high)));
  return el(
    "div",
    { class: "legend", role: "img", "aria-label": `Colour scale: ${unit}, from 0 to ${digits(high)}; square root` },
    el("span", { class: "legend-unit" }, unit),
    el(
      "span",
      { class: "legend-body" },
      el("span", { class: "legend-bar", style: { background: `linear-gradient(90deg, ${stops.join(", ")})` } }),
      el(
        "span",
        { class: "legend-ticks" },
        ...[0, 0.25, 0.5, 0.75, 1].map((part) =>
          el("span", { style: { left: `${part * 100}%` } }, part === 0.25 || part === 0.75 ? "" : digits(part * part * high)),
        ),
      ),
    ),
  );
}
