// What the colours of the grid mean: unit, ends, the baseline, and from where a score makes a role.

import { hex } from "../colour.ts";
import { svg } from "../dom.ts";
import { range } from "../reading.ts";
import type { App } from "./app.ts";
import { line, type Tone, toneOf, write } from "./draw.ts";
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
  if (state.shown !== "difference") group.append(...marks(app, at, tone));
  return group;
}

/** Where the baseline lies, and from where a score makes a role. */
function marks({ measure }: App, at: (value: number) => number, tone: Tone): SVGElement[] {
  const found: SVGElement[] = [];
  const baseline = median(measure.baseline.values);
  const threshold = measure.claim?.threshold ?? 0;
  let next = 0; // where the words under the scale go on
  if (Number.isFinite(baseline)) {
    const x = at(baseline).toFixed(1);
    const said = `baseline, median head: ${showAs(measure, baseline)}`;
    found.push(
      line(`M${x} 20v12`, tone.mark, { "stroke-width": 2 }),
      svg("path", { d: `M${x} 33l4 6h-8z`, fill: tone.mark }),
      svg("path", { d: "M4 61l4 6h-8z", fill: tone.mark }),
      write(13, 68, said, tone.faint),
    );
    next = 13 + 6.3 * said.length + 12;
  }
  if (threshold > 0 && at(threshold) > 0) {
    const dashed = { "stroke-width": 1.5, "stroke-dasharray": "3 2" };
    found.push(
      line(`M${at(threshold).toFixed(1)} 15v17`, tone.ink, dashed),
      line(`M${next + 2} 59v10`, tone.ink, dashed),
      write(next + 9, 68, `role from ${brief(threshold)}`, tone.faint),
    );
  }
  return found;
}
