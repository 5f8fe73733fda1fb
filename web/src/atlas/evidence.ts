// What a claim about a head rests on: both halves of the texts, the baseline, the control, as a drawing.

import { svg } from "../dom.ts";
import type { App } from "./app.ts";
import type { Measure } from "./data.ts";
import { box, line, toneOf, write } from "./draw.ts";
import { brief, isShare } from "./text.ts";

export interface Evidence {
  measure: Measure;
  label: string;
  chosen: number;
  held: number;
  low: number;
  high: number;
  baseline: number;
  control: number; // NaN where there is none
  raw: number; // with the sink left in; NaN where that is the score
  n: number;
  texts: number;
  needed: number; // the least held-out score for the role: of threshold, baseline and control
  holds: boolean;
}

export function evidenceOf(app: App, place: number, at: number): Evidence {
  const measure = app.atlas.data.measures[at];
  const { scored, chosen, baseline, control, raw, claim } = measure;
  const holds = app.atlas.data.sink?.measure === at ? app.atlas.isSink(place) : app.atlas.rolesOf(place).some((role) => role.measure === at);
  const asked = claim && [
    claim.threshold,
    claim.overBaseline * baseline.values[place],
    claim.margin !== null && control ? claim.margin + control.values[place] : NaN,
  ];
  return {
    measure,
    label: claim?.role ?? measure.label,
    chosen: chosen.score.values[place],
    held: scored.score.values[place],
    low: scored.low.values[place],
    high: scored.high.values[place],
    baseline: baseline.values[place],
    control: control ? control.values[place] : NaN,
    raw: raw ? raw.values[place] : NaN,
    n: scored.n,
    texts: scored.texts,
    needed: asked ? Math.max(...asked.filter(Number.isFinite)) : NaN,
    holds,
  };
}

/** How near a claim comes to holding: the held-out score as a multiple of what the claim asks for. */
const nearness = ({ held, needed }: Evidence): number => (Number.isFinite(held) && needed > 0 ? held / needed : 0);

/** Every claim that was tested, the ones that hold first, then the nearest; the sink, which is no role, last. */
export function claimsOf(app: App, place: number): { roles: Evidence[]; sink: Evidence | null } {
  const { measures, sink } = app.atlas.data;
  const roles = measures.flatMap((measure, at) => (measure.claim && at !== sink?.measure ? [evidenceOf(app, place, at)] : []));
  roles.sort((a, b) => Number(b.holds) - Number(a.holds) || nearness(b) - nearness(a));
  return { roles, sink: sink && measures[sink.measure].claim ? evidenceOf(app, place, sink.measure) : null };
}

export const EVIDENCE_HEIGHT = 40;

/** The evidence on one axis: a mark for each number. */
export function evidenceDrawing(app: App, evidence: Evidence, width: number): SVGGElement {
  const tone = toneOf(app);
  const { chosen, held, low, high, baseline, control, needed, measure } = evidence;
  const numbers = [chosen, held, high, baseline, control, needed].filter(Number.isFinite);
  const top = isShare(measure) ? 1 : 1.05 * Math.max(...numbers) || 1;
  const bottom = Math.min(0, ...[low, ...numbers].filter(Number.isFinite));
  const [left, right, middle] = [8, width - 8, 15];
  const at = (value: number) => left + ((right - left) * (value - bottom)) / (top - bottom);
  const group = svg("g", { "font-size": 11 });
  group.append(box(left, middle - 3, right - left, 6, tone.soft, { rx: 3 }));
  for (const part of [0, 0.25, 0.5, 0.75, 1]) {
    const x = left + part * (right - left);
    const anchor = part === 0 ? "start" : part === 1 ? "end" : "middle";
    group.append(line(`M${x.toFixed(1)} ${middle + 7}v4`, tone.faint, { "stroke-opacity": 0.6 }));
    group.append(write(anchor === "start" ? x - 3 : anchor === "end" ? x + 3 : x, middle + 23, brief(bottom + part * (top - bottom)), tone.faint, { "text-anchor": anchor }));
  }
  if (Number.isFinite(needed) && needed <= top) group.append(line(`M${at(needed).toFixed(1)} ${middle - 11}v22`, tone.ink, { "stroke-width": 1.5, "stroke-dasharray": "3 2" }));
  if (Number.isFinite(baseline)) group.append(line(`M${at(baseline).toFixed(1)} ${middle - 8}v16`, tone.mark, { "stroke-width": 2.5 }));
  if (Number.isFinite(control)) group.append(diamond(at(control), middle, tone.faint, tone.page));
  if (Number.isFinite(low)) group.append(line(`M${at(low).toFixed(1)} ${middle}H${at(high).toFixed(1)}`, tone.line, { "stroke-width": 3 }));
  if (Number.isFinite(chosen)) group.append(svg("circle", { cx: at(chosen).toFixed(1), cy: middle, r: 5, fill: tone.page, stroke: tone.line, "stroke-width": 2 }));
  if (Number.isFinite(held)) group.append(svg("circle", { cx: at(held).toFixed(1), cy: middle, r: 5, fill: tone.line }));
  return group;
}

export const diamond = (x: number, y: number, stroke: string, fill: string): SVGPathElement =>
  svg("path", { d: `M${x.toFixed(1)} ${y - 6}l5.5 6l-5.5 6l-5.5 -6z`, stroke, fill, "stroke-width": 1.75 });
