// How the selected word's vector moves through the layers; and, with two texts, how far the contexts pull it apart.

import { any, type App, type Panel } from "./app.ts";
import { name } from "./bidi.ts";
import { changesTables } from "./changes.ts";
import { chart } from "./chart.ts";
import { el } from "./dom.ts";
import { range } from "./reading.ts";
import { type Sheet, saveControls } from "./save.ts";
import { snapshot } from "./snapshot.ts";

export function pathPanel(app: App): Panel {
  const title = el("h2", { id: "h-path" });
  const body = el("div", { class: "columns charts" });
  const save = saveControls(app, {
    what: "the layers",
    part: () => `layers-${app.reading.unitText[unitOf(app) ?? 0]}`,
    figure: () => snapshot(body, title.textContent!, app.page.model.name),
    sheet: () => sheet(app),
  });
  const element = el("section", { class: "panel", "aria-labelledby": "h-path" }, el("div", { class: "panel-head" }, title, save), body);

  const draw = () => {
    const { reading, page } = app;
    const unit = unitOf(app);
    if (unit === null) return body.replaceChildren();
    const word = name(reading.unitText[unit]);
    title.textContent = `“${word}” through the layers`;
    const parts = [
      chart(
        "Cosine of its vector with its own embedding, and with itself one layer before: 1 is unmoved.",
        [
          { name: "with its embedding", values: reading.path(unit), kind: "main" },
          { name: "with the layer before", values: reading.steps(unit), kind: "second" },
          { name: "with the embedding, mean of all words", values: reading.data.pathOfAll, kind: "ground" },
        ],
        `How far “${word}” moves`,
      ),
    ];
    const near = nearest(app, unit, word);
    if (near) parts.push(near);
    if (page.comparison) parts.push(contexts(app, unit, word), ...changesTables(app, unit, word));
    body.replaceChildren(...parts);
  };

  draw();
  return {
    element,
    update(changed) {
      if (any(changed, "text", "token")) draw();
    },
  };
}

const ROWS = 13; // layers of the table; of a deeper model every second or third

/** The words of the text whose vectors are nearest, by layers passed. */
function nearest(app: App, unit: number, word: string): HTMLElement | null {
  const found = app.reading.data.nearest;
  if (!found) return null;
  const [depths, , kept] = found.units.shape;
  const step = Math.ceil((depths - 1) / (ROWS - 1)) || 1;
  const rows = range(depths).filter((depth) => depth % step === 0 || depth === depths - 1);
  const cell = (depth: number, rank: number) => {
    const at = (depth * app.reading.units.length + unit) * kept + rank;
    const other = found.units.values[at];
    const click = () => app.set({ token: app.reading.units[other][0], other: null, grid: "maps" });
    return [
      el("td", { class: "near" }, el("button", { type: "button", class: "word-button", "data-focus": `near ${depth} ${rank}`, on: { click } }, el("bdi", {}, app.reading.unitText[other]))),
      el("td", { class: "quiet" }, found.cosine.values[at].toFixed(2)),
    ];
  };
  const head = ["layers passed", ...range(kept).flatMap((rank) => [["nearest", "second", "third"][rank], ""]), "all pairs"];
  return el(
    "div",
    {},
    el("h3", {}, `What “${word}” comes near to`),
    el("p", { class: "caption" }, "The words of this text with the largest cosine to its vector in the same layer; last, the mean over all pairs."),
    el("div", { class: "scroll-x" }, el(
      "table",
      { class: "nearest" },
      el("thead", {}, el("tr", {}, ...head.map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, ...rows.map((depth) => el("tr", {}, el("th", { scope: "row" }, depth), ...range(kept).flatMap((rank) => cell(depth, rank)), el("td", { class: "quiet" }, found.mean[depth].toFixed(2))))),
    )),
  );
}

/** The unit whose path is shown. */
const unitOf = ({ state, reading }: App): number | null =>
  state.token === null ? (reading.data.chosen[0] ?? null) : reading.unitOf[state.token];

/** The cosine of the word's vectors in the two texts. */
function contextOf(app: App, unit: number): number[] | null {
  const { pairs, cosine, baseline } = app.page.comparison!;
  const at = pairs.findIndex((pair) => pair[app.state.text] === unit);
  return at < 0 ? null : [...cosine.values.subarray(at * baseline.length, (at + 1) * baseline.length)];
}

function contexts(app: App, unit: number, word: string): HTMLElement {
  const { pairs, baseline, baselinePairs } = app.page.comparison!;
  const values = contextOf(app, unit);
  if (!values) {
    const shared = pairs.map((pair) => name(app.reading.unitText[pair[app.state.text]]));
    return el(
      "div",
      {},
      el("h3", {}, "Between the two texts"),
      el("p", { class: "quiet" }, shared.length ? `“${word}” stands in one text only. In both: ${shared.slice(0, 12).join(", ")}.` : "The texts share no word."),
    );
  }
  return chart(
    `Cosine of “${word}” in text 1 with “${word}” in text 2, layer by layer. Dashed: different words (${baselinePairs.toLocaleString("en")} pairs).`,
    [
      { name: `“${word}” 1 · 2`, values, kind: "second" },
      { name: "different words", values: baseline, kind: "ground" },
    ],
    `“${word}” in one text and the other`,
  );
}

function sheet(app: App): Sheet {
  const unit = unitOf(app);
  const header = ["layers passed", "cosine with its embedding", "cosine with the layer before", "mean of all words"];
  if (unit === null) return { header, rows: [] };
  const context = app.page.comparison && contextOf(app, unit);
  const [path, steps] = [app.reading.path(unit), app.reading.steps(unit)];
  return {
    header: [...header, ...(context ? ["cosine between the texts", "different words"] : [])],
    rows: range(path.length).map((depth) => [
      depth,
      path[depth],
      steps[depth],
      app.reading.data.pathOfAll[depth],
      ...(context ? [context[depth], app.page.comparison!.baseline[depth]] : []),
    ]),
  };
}
