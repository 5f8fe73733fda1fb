// The logit lens: the output embedding applied to the state after each layer, as a table of layers and tokens.

import { show } from "./app.ts";
import { colour, css, ink, type Theme } from "./colour.ts";
import { el } from "./dom.ts";
import { range } from "./reading.ts";
import type { Writing } from "./writing.ts";

/** A token as it is shown in a line: blanks around it, line breaks and tabs as signs. */
export const signs = (text: string): string => {
  const shown = text.replace(/\n/g, "↵").replace(/\t/g, "⇥");
  return shown.trim() ? shown.replace(/^ +| +$/g, (blanks) => "·".repeat(blanks.length)) : shown.replace(/ /g, "␣");
};

/** The most likely tokens of the column `chosen`, and of its neighbours the first alone; the last layer on top. */
export function lensTable(writing: Writing, names: string[], from: number, chosen: number, theme: Theme): HTMLElement[] {
  const lens = writing.lens!;
  const [, depths, few] = lens.top.shape;
  const cell = (step: number, depth: number): HTMLElement => {
    const at = step * depths + depth;
    const rank = Math.round(2 ** lens.rank.values[at]);
    const known = writing.rank[step] > 0;
    const tops = range(step === chosen ? few : 1).map((place) => {
      const share = lens.shares.values[at * few + place];
      const rgb = colour(theme, share, 1);
      const style = { "background-color": css(rgb), color: ink(rgb) };
      const own = known && rank === place + 1;
      const text = signs(writing.texts[lens.top.values[at * few + place]]);
      return el("span", { class: own ? "lens-top own" : "lens-top", style, title: `${text} ${show(share)}` }, text);
    });
    if (step !== chosen) return el("td", { "data-step": step }, ...tops);
    const numbers = known ? [show(lens.probability.values[at]), rank.toLocaleString("en")] : ["–", "–"];
    return el("td", { class: "chosen" }, el("div", { class: "lens-chosen" }, ...tops, el("span", {}, numbers[0]), el("span", {}, numbers[1])));
  };
  const heading = (name: string, i: number): HTMLElement =>
    from + i === chosen
      ? el("th", { scope: "col", class: "chosen" }, el("div", { class: "lens-chosen" }, el("b", {}, name), ...range(few - 1).map(() => el("span")), el("span", {}, "prob."), el("span", {}, "rank")))
      : el("th", { scope: "col", "data-step": from + i }, name);
  return [
    el("h3", {}, "Logit lens"),
    el(
      "p",
      { class: "caption" },
      `What each layer's state alone would write: the output embedding applied to it. Of the chosen token the ${few === 1 ? "first candidate" : `first ${few} candidates`}, its own probability and rank; shade: probability (square-root scale). Framed: the token itself.`,
    ),
    el(
      "div",
      { class: "scroll-x" },
      el(
        "table",
        { class: "lens-table" },
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "layers"), ...names.map(heading))),
        el(
          "tbody",
          {},
          ...range(depths)
            .reverse()
            .map((depth) => el("tr", {}, el("th", { scope: "row" }, depth ? String(depth) : "0 (emb.)"), ...names.map((_, i) => cell(from + i, depth)))),
        ),
      ),
    ),
  ];
}
