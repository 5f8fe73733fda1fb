// The weights of a head in a short text as a heat map, and its examples as a figure for a file.

import { colour, hex } from "../colour.ts";
import { svg } from "../dom.ts";
import { range } from "../reading.ts";
import type { App } from "./app.ts";
import { box, canvas, clip, shift, title, toneOf, write } from "./draw.ts";
import type { Example } from "./model.ts";
import { show } from "./text.ts";

const SIDE = 500;

export function pictureFigure(app: App): SVGSVGElement {
  const figure = canvas(app, SIDE, SIDE);
  figure.append(pictureDrawing(app));
  return figure;
}

function pictureDrawing(app: App): SVGGElement {
  const tone = toneOf(app);
  const names = app.atlas.data.picture!.tokens.map((token) => clip(token.trim() || "␣", 11));
  const weights = app.atlas.picture(app.state.head);
  const width = names.length;
  const cell = (SIDE - 80) / width;
  const font = Math.min(12, Math.max(7, cell * 0.85));
  const margin = 76;
  const group = svg("g", { "font-size": font.toFixed(1) });
  for (const row of range(width))
    for (const column of range(width)) {
      const value = weights[row * width + column];
      const square = box(margin + column * cell, margin + row * cell, cell + 0.06, cell + 0.06, hex(colour(app.state.theme, value, 1)));
      square.append(svg("title", {}, `${names[row]} → ${names[column]}: ${show(value)}`));
      group.append(square);
    }
  group.append(svg("rect", { x: margin, y: margin, width: cell * width, height: cell * width, fill: "none", stroke: tone.faint, "stroke-opacity": 0.45 }));
  names.forEach((name, at) => {
    const middle = margin + (at + 0.5) * cell + font * 0.35;
    group.append(
      write(margin - 5, middle, name, tone.ink, { "text-anchor": "end" }),
      svg("text", { transform: `translate(${middle.toFixed(1)} ${margin - 5}) rotate(-90)`, fill: tone.ink }, name),
    );
  });
  return group;
}

const WIDE = 760;

/** All examples of the head, one below the other, and its heat map. */
export function examplesFigure(app: App): SVGSVGElement {
  const tone = toneOf(app);
  let y = 60;
  const parts: SVGElement[] = [];
  for (const example of app.atlas.examples(app.state.head)) {
    const lines = wrapped(example, tone.ink, tone.mark);
    parts.push(write(16, y + 16, show(example.weight), tone.ink, { "font-weight": 650 }), shift(72, y, ...lines));
    y += lines.length * 19 + 12;
  }
  if (app.atlas.data.picture) {
    parts.push(shift(12, y + 8, pictureDrawing(app)));
    y += SIDE + 16;
  }
  const figure = canvas(app, WIDE, y + 8, true);
  figure.append(title(app, `Head ${app.atlas.name(app.state.head)}: query underlined, key bold`), ...parts);
  return figure;
}

/** The text of an example in lines; the query underlined, the key bold. */
function wrapped({ tokens, query, key }: Example, ink: string, mark: string): SVGTextElement[] {
  const lines: SVGTextElement[] = [];
  let length = Infinity;
  tokens.forEach((token, at) => {
    if (length + token.length > 92) {
      lines.push(write(0, 16 + lines.length * 19, "", ink, { "font-size": 13, "xml:space": "preserve" }));
      length = 0;
    }
    length += token.length;
    const strong = at === query || at === key;
    const more = strong ? { fill: mark, "font-weight": at === key ? 700 : 400, "text-decoration": at === query ? "underline" : "none" } : {};
    lines.at(-1)!.append(svg("tspan", more, token.replace(/\s+/gu, " ")));
  });
  return lines;
}
