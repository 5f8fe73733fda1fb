// An example of a head as a heat map, and all examples as a figure for a file.

import { colour, hex } from "../colour.ts";
import { svg } from "../dom.ts";
import { range } from "../reading.ts";
import type { App } from "./app.ts";
import { box, canvas, clip, line, shift, title, toneOf, write } from "./draw.ts";
import type { Example } from "./model.ts";
import { show } from "./text.ts";

const SIDE = 460;

/** The weights among the tokens of an example. `page`: with a background, for a file. */
export function mapFigure(app: App, example: Example, page: boolean): SVGSVGElement {
  const figure = canvas(app, SIDE, SIDE, page);
  figure.append(mapDrawing(app, example));
  return figure;
}

function mapDrawing(app: App, { tokens, query, key, map }: Example): SVGGElement {
  const tone = toneOf(app);
  const { theme } = app.state;
  const width = tokens.length;
  const names = tokens.map((token) => clip(token.trim() || "␣", 10));
  const margin = 12 + 6.4 * Math.min(10, Math.max(...names.map((name) => [...name].length)));
  const cell = (SIDE - margin - 4) / width;
  const font = Math.min(12, Math.max(7.5, cell * 0.85));
  const high = Math.max(...map!) || 1;
  const group = svg("g", { "font-size": font.toFixed(1) });
  for (const row of range(width))
    for (const column of range(width)) {
      const value = map![row * width + column];
      const square = box(margin + column * cell, margin + row * cell, cell + 0.06, cell + 0.06, hex(colour(theme, value, high)));
      square.append(svg("title", {}, `${names[row]} → ${names[column]}: ${show(value)}`));
      group.append(square);
    }
  group.append(svg("rect", { x: margin, y: margin, width: cell * width, height: cell * width, fill: "none", stroke: tone.faint, "stroke-opacity": 0.45 }));
  names.forEach((name, at) => {
    const middle = margin + (at + 0.5) * cell + font * 0.35;
    const [asQuery, asKey] = [at === query, at === key];
    const style = (strong: boolean) => ({ "font-weight": strong ? 700 : 400 });
    group.append(
      write(margin - 5, middle, name, asQuery ? tone.mark : tone.ink, { "text-anchor": "end", ...style(asQuery) }),
      svg("text", { transform: `translate(${middle.toFixed(1)} ${margin - 5}) rotate(-90)`, fill: asKey ? tone.mark : tone.ink, ...style(asKey) }, name),
    );
  });
  group.append(svg("rect", { x: margin + key * cell, y: margin + query * cell, width: cell, height: cell, fill: "none", stroke: tone.mark, "stroke-width": 2 }));
  return group;
}

const WIDE = 760;

/** All examples of the head, one below the other, and the heat map of the chosen one. */
export function examplesFigure(app: App): SVGSVGElement {
  const tone = toneOf(app);
  const examples = app.atlas.examples(app.state.head);
  const chosen = examples[app.state.example];
  let y = 60;
  const parts: SVGElement[] = [];
  for (const example of examples) {
    const { lines, marks } = wrapped(example, tone.ink, tone.mark);
    parts.push(write(16, y + 16, show(example.weight), tone.ink, { "font-weight": 650 }), shift(72, y, ...marks, ...lines));
    y += lines.length * 19 + 12;
  }
  if (chosen?.map) {
    parts.push(shift(16, y + 8, mapDrawing(app, chosen)));
    y += SIDE + 16;
  }
  const figure = canvas(app, WIDE, y + 8, true);
  figure.append(title(app, `Head ${app.atlas.name(app.state.head)}: strongest examples`), ...parts);
  return figure;
}

/** The text of an example in lines; the query underlined, the key bold. */
function wrapped({ tokens, query, key }: Example, ink: string, mark: string): { lines: SVGTextElement[]; marks: SVGPathElement[] } {
  const lines: SVGTextElement[] = [];
  let length = Infinity;
  tokens.forEach((token, at) => {
    if (length + token.length > 92) {
      lines.push(write(0, 16 + lines.length * 19, "", ink, { "font-size": 13, "xml:space": "preserve" }));
      length = 0;
    }
    length += token.length;
    const strong = at === query || at === key;
    const text = token.replace(/\s+/g, " ");
    const more = strong ? { fill: mark, "font-weight": at === key ? 700 : 400, "text-decoration": at === query ? "underline" : "none" } : {};
    lines.at(-1)!.append(svg("tspan", more, text));
  });
  return { lines, marks: lines.length ? [line(`M-10 4V${lines.length * 19}`, mark, { "stroke-opacity": 0.35 })] : [] };
}
