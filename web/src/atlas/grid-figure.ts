// The grid of heads as a figure for a file, with its legend and the letters of the roles.

import { hex, ink } from "../colour.ts";
import { svg } from "../dom.ts";
import { range } from "../reading.ts";
import type { Sheet } from "../save.ts";
import type { App } from "./app.ts";
import { box, canvas, title, toneOf, write } from "./draw.ts";
import { LEGEND_HEIGHT, legend } from "./legend.ts";

const STEP = 24;

export function gridFigure(app: App): SVGSVGElement {
  const { atlas, measure } = app;
  const { values, scale } = app.coloured();
  const tone = toneOf(app);
  const width = Math.max(460, 60 + atlas.heads * STEP);
  const keys = app.state.letters ? atlas.roles : [];
  const top = 84;
  const bottom = top + atlas.layers * STEP + 18;
  const lines = Math.ceil(keys.length / 2);
  const figure = canvas(app, width, bottom + LEGEND_HEIGHT + 16 + lines * 17 + (lines ? 10 : 0), true);
  figure.append(title(app, `Heads by ${measure.label}`));
  for (const head of range(atlas.heads))
    figure.append(write(48 + (head + 0.5) * STEP, top - 7, String(head), tone.faint, { "text-anchor": "middle", "font-size": 10.5 }));
  for (const layer of range(atlas.layers))
    figure.append(write(40, top + (layer + 0.5) * STEP + 4, String(layer), tone.faint, { "text-anchor": "end", "font-size": 10.5 }));
  figure.append(write(16, top - 7, "layer", tone.faint, { "font-size": 10.5 }));
  for (const place of range(atlas.count)) {
    const [x, y] = [48 + (place % atlas.heads) * STEP, top + Math.floor(place / atlas.heads) * STEP];
    const tint = scale.tint(values[place]);
    const known = Number.isFinite(values[place]);
    figure.append(box(x + 1, y + 1, STEP - 2, STEP - 2, known ? hex(tint) : tone.soft, { rx: 3 }));
    const letters = app.letters(place);
    if (letters)
      figure.append(write(x + STEP / 2, y + STEP / 2 + 4, letters, known ? ink(tint) : tone.ink, { "text-anchor": "middle", "font-size": 11, "font-weight": 650 }));
    if (app.state.sinks && atlas.isSink(place))
      figure.append(svg("circle", { cx: x + STEP - 5, cy: y + 5, r: 2, fill: known ? ink(tint) : tone.ink }));
  }
  figure.append(svg("g", { transform: `translate(48 ${bottom})` }, legend(app, width - 64)));
  keys.forEach((role, at) => {
    const [x, y] = [48 + (at % 2) * ((width - 64) / 2), bottom + LEGEND_HEIGHT + 20 + Math.floor(at / 2) * 17];
    figure.append(
      write(x, y, atlas.letters.get(role)!, tone.ink, { "font-size": 11.5, "font-weight": 700 }),
      write(x + 24, y, `${role} (${atlas.holders(role)})`, tone.faint, { "font-size": 11.5 }),
    );
  });
  return figure;
}

export function gridSheet(app: App): Sheet {
  const { atlas, measure } = app;
  const { baseline, control, other, total } = measure;
  const header = ["layer", "head", measure.id, "low", "high", "baseline", "shuffled text", ...(other ? ["other"] : []), "roles"];
  return {
    header,
    rows: range(atlas.count).map((place) => [
      Math.floor(place / atlas.heads),
      place % atlas.heads,
      ...[total.score, total.low, total.high, baseline].map((numbers) => numbers.values[place]),
      control ? control.values[place] : null,
      ...(other ? [other.score.values[place]] : []),
      atlas.rolesOf(place).map(({ role }) => role).join("; "),
    ]),
  };
}
