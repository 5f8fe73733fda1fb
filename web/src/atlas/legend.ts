// What the colours of the grid mean: unit, ends, the baseline, and from where a score makes a role.

import { hex } from "../colour.ts";
import { svg } from "../dom.ts";
import { range } from "../reading.ts";
import type { App } from "./app.ts";
import { line, toneOf, write } from "./draw.ts";
import { brief, median, showAs, unitOf } from "./text.ts";

export const LEGEND_HEIGHT = 72;

/** The legend as a drawing of a width. */
export function legend(app: App, width: number): SVGGElement {
  const { measure, state } = app;
  const { scale } = app.coloured();
  const tone = toneOf(app);
  const bar = Math.min(width, 420) - 8;
  const at = (value: number) => Math.min(bar, Math.max(0, (bar * (value - scale.low)) / (scale.high - scale.low)));
  const group = svg("g", { "font-size": 11.5, transform: "translate(5 0)" });
  const stops = range(33).map((i) => {
    const part = i / 32;
    return svg("stop", { offset: part, "stop-color": hex(scale.tint(scale.low + part * (scale.high - scale.low))) });
  });
  const id = "legend-colours";
  group.append(svg("linearGradient", { id }, ...stops), svg("rect", { x: 0, y: 20, width: bar, height: 12, rx: 2, fill: `url(#${id})` }));
  group.append(svg("rect", { x: 0, y: 20, width: bar, height: 12, rx: 2, fill: "none", stroke: tone.faint, "stroke-opacity": 0.5 }));
  for (const [part, anchor] of [[0, "start"], [0.5, "middle"], [1, "end"]] as const)
    group.append(write(part * bar, 51, brief(scale.low + part * (scale.high - scale.low)), tone.faint, { "text-anchor": anchor }));
  const unit = state.shown === "difference" ? `${unitOf(measure)}: the other less this model` : unitOf(measure);
  group.append(write(0, 10, unit, tone.ink));
  const threshold = measure.claim?.threshold;
  if (state.shown !== "difference") {
    const baseline = median(measure.baseline.values);
    if (Number.isFinite(baseline)) {
      const x = at(baseline);
      group.append(
        line(`M${x.toFixed(1)} 20v12`, tone.mark, { "stroke-width": 2 }),
        svg("path", { d: `M${x.toFixed(1)} 33l4 6h-8z`, fill: tone.mark }),
        svg("path", { d: "M4 61l4 6h-8z", fill: tone.mark }),
        write(13, 68, `baseline, in the median head: ${showAs(measure, baseline)}`, tone.faint),
      );
    }
    if (threshold !== undefined && threshold > 0 && threshold <= scale.high) {
      const x = at(threshold);
      group.append(line(`M${x.toFixed(1)} 15v17`, tone.ink, { "stroke-width": 1.5, "stroke-dasharray": "3 2" }));
      group.append(write(Math.min(x, bar - 4), 11, `role from ${brief(threshold)}`, tone.faint, { "text-anchor": x > bar * 0.75 ? "end" : "middle" }));
    }
  }
  return group;
}
