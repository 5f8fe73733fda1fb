// What the colours of the grid mean: unit, ends, the baseline, and from where a score makes a role.

import { hex } from "../colour.ts";
import { svg } from "../dom.ts";
import type { App } from "./app.ts";
import { line, toneOf, write } from "./draw.ts";
import { median, show, signed, unitOf } from "./text.ts";

export const LEGEND_HEIGHT = 66;

/** The legend as a drawing of a width. */
export function legend(app: App, width: number): SVGGElement {
  const { measure, state } = app;
  const { scale } = app.coloured();
  const tone = toneOf(app);
  const bar = Math.min(width, 420);
  const at = (value: number) => Math.min(bar, Math.max(0, (bar * (value - scale.low)) / (scale.high - scale.low)));
  const group = svg("g", { "font-size": 11.5 });
  const steps = 64;
  for (let i = 0; i < steps; i++) {
    const value = scale.low + ((i + 0.5) / steps) * (scale.high - scale.low);
    const x = (i * bar) / steps;
    group.append(svg("rect", { x: x.toFixed(2), y: 20, width: (bar / steps + 0.4).toFixed(2), height: 12, fill: hex(scale.tint(value)) }));
  }
  group.append(svg("rect", { x: 0, y: 20, width: bar, height: 12, rx: 2, fill: "none", stroke: tone.faint, "stroke-opacity": 0.5 }));
  const number = scale.signed ? signed : show;
  for (const [part, anchor] of [[0, "start"], [0.5, "middle"], [1, "end"]] as const)
    group.append(write(part * bar, 46, number(scale.low + part * (scale.high - scale.low)), tone.faint, { "text-anchor": anchor }));
  const unit = state.shown === "difference" ? `${unitOf(measure)}, this model less the other` : unitOf(measure);
  group.append(write(0, 10, unit, tone.ink));
  const threshold = measure.claim?.threshold;
  if (state.shown !== "difference") {
    const baseline = median(measure.baseline.values);
    if (Number.isFinite(baseline)) {
      const x = at(baseline);
      group.append(
        line(`M${x.toFixed(1)} 20v12`, tone.mark, { "stroke-width": 2 }),
        svg("path", { d: `M${x.toFixed(1)} 33l4 6h-8z`, fill: tone.mark }),
        svg("path", { d: "M4 54l4 6h-8z", fill: tone.mark }),
        write(13, 61, `baseline: ${measure.baselineName}, ${show(baseline)} in the median head`, tone.faint),
      );
    }
    if (threshold !== undefined && threshold <= scale.high) {
      const x = at(threshold);
      group.append(line(`M${x.toFixed(1)} 15v17`, tone.ink, { "stroke-width": 1.5, "stroke-dasharray": "3 2" }));
      group.append(write(Math.min(x, bar - 4), 11, `role from ${show(threshold)}`, tone.faint, { "text-anchor": x > bar * 0.75 ? "end" : "middle" }));
    }
  }
  return group;
}
