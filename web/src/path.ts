// How the selected word's vector moves through the layers; and, with two texts, how far the contexts pull it apart.

import { any, type App, type Panel, show } from "./app.ts";
import { el, svg } from "./dom.ts";
import { range } from "./reading.ts";
import { hideTip, tip } from "./tip.ts";

interface Line {
  name: string;
  values: number[];
  kind: "main" | "second" | "ground";
}

export function pathPanel(app: App): Panel {
  const title = el("h2", { id: "h-path" });
  const body = el("div", { class: "columns charts" });
  const element = el("section", { class: "panel", "aria-labelledby": "h-path" }, el("div", { class: "panel-head" }, title), body);

  const draw = () => {
    const { state, reading, page } = app;
    const unit = state.token === null ? reading.data.chosen[0] : reading.unitOf[state.token];
    if (unit === undefined) return body.replaceChildren();
    const word = reading.unitText[unit];
    title.textContent = `“${word}” through the layers`;
    const parts = [
      chart(
        `Cosine of its vector with its own embedding, and with itself one layer before: 1 is unmoved.`,
        [
          { name: "with its embedding", values: reading.path(unit), kind: "main" },
          { name: "with the layer before", values: reading.steps(unit), kind: "second" },
          { name: "with the embedding, mean of all words", values: reading.data.pathOfAll, kind: "ground" },
        ],
        `How far “${word}” moves`,
      ),
    ];
    if (page.comparison) parts.push(contexts(app, unit, word));
    const changed = page.comparison && changes(app, unit, word);
    if (changed) parts.push(changed);
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

function contexts(app: App, unit: number, word: string): HTMLElement {
  const { pairs, cosine, baseline, baselinePairs } = app.page.comparison!;
  const at = pairs.findIndex((pair) => pair[app.state.text] === unit);
  if (at < 0) {
    const shared = pairs.map((pair) => app.reading.unitText[pair[app.state.text]]);
    return el(
      "div",
      {},
      el("h3", {}, "Between the two texts"),
      el("p", { class: "quiet" }, shared.length ? `“${word}” stands in one text only. In both: ${shared.slice(0, 12).join(", ")}.` : "The texts share no word."),
    );
  }
  const steps = baseline.length;
  return chart(
    `Cosine of “${word}” in text 1 with “${word}” in text 2, layer by layer. Dashed: different words (${baselinePairs.toLocaleString("en")} pairs).`,
    [
      { name: `“${word}” 1 · 2`, values: [...cosine.values.subarray(at * steps, (at + 1) * steps)], kind: "second" },
      { name: "different words", values: baseline, kind: "ground" },
    ],
    `“${word}” in one text and the other`,
  );
}

/** Which relations of a shared word differ most between the texts: means over the heads of one layer. */
function changes(app: App, unit: number, word: string): HTMLElement | null {
  const { pairs } = app.page.comparison!;
  const [first, second] = app.readings;
  const pair = pairs.find((pair) => pair[app.state.text] === unit);
  if (!pair || !first.exact || !second.exact) return null;
  const found = pairs.flatMap(([a, b]) => {
    if (a === pair[0] || first.aside.has(a) || second.aside.has(b)) return [];
    const means = range(first.layers).map((layer) => ({
      a,
      layer,
      values: [first.meanBetween(pair[0], a, layer), second.meanBetween(pair[1], b, layer)],
    }));
    const most = means.reduce((best, now) => (Math.abs(gap(now.values)) > Math.abs(gap(best.values)) ? now : best));
    return gap(most.values) ? [most] : []; // a word that stands behind is not seen
  });
  if (!found.length) return null;
  found.sort((x, y) => Math.abs(gap(y.values)) - Math.abs(gap(x.values)));
  const follow = (a: number, layer: number) =>
    el(
      "button",
      {
        type: "button",
        class: "word-button",
        title: `Show layer ${layer}, mean over its heads`,
        "data-focus": `change ${a}`,
        on: { click: () => app.set({ other: app.readings[app.state.text].units[partner(a)][0], layer, scope: "layer", direction: "from" }) },
      },
      first.unitText[a],
    );
  const partner = (a: number) => pairs.find((pair) => pair[0] === a)![app.state.text];
  const head = ["looks at", "text 1", "text 2", "change", "layer"];
  return el(
    "div",
    {},
    el("h3", {}, `What changed most for “${word}”`),
    el("p", { class: "caption" }, "Its attention to the words that stand in both texts: mean over the heads of the layer where it differs most."),
    el("div", { class: "scroll-x" }, el(
      "table",
      { class: "changes" },
      el("thead", {}, el("tr", {}, ...head.map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, ...found.slice(0, 6).map(({ a, layer, values }) =>
        el("tr", {}, el("th", { scope: "row" }, follow(a, layer)), el("td", {}, show(values[0])), el("td", {}, show(values[1])),
          el("td", { class: gap(values) > 0 ? "more" : "less" }, `${gap(values) > 0 ? "+" : "−"}${Math.abs(gap(values)).toFixed(3)}`), el("td", {}, layer)))),
    )),
  );
}

const gap = (values: number[]): number => values[1] - values[0];

const WIDTH = 460;
const HEIGHT = 220;
const BOX = { left: 38, right: 14, top: 14, bottom: 34 };

function chart(caption: string, lines: Line[], heading: string): HTMLElement {
  const count = lines[0].values.length;
  const low = Math.min(0, ...lines.flatMap((line) => line.values));
  const floor = low < 0 ? Math.floor(low * 5) / 5 : 0;
  const x = (layer: number) => BOX.left + (layer / Math.max(1, count - 1)) * (WIDTH - BOX.left - BOX.right);
  const y = (value: number) => BOX.top + ((1 - value) / (1 - floor)) * (HEIGHT - BOX.top - BOX.bottom);
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "chart", role: "img" });
  picture.append(svg("title", {}, `${heading}: ${lines.map((l) => `${l.name} ${l.values.map(show).join(", ")}`).join("; ")}`));
  for (const tick of range(Math.round((1 - floor) * 5) + 1).map((i) => floor + i / 5))
    picture.append(
      svg("path", { d: `M${BOX.left} ${y(tick)}H${WIDTH - BOX.right}`, class: Math.abs(tick) < 1e-6 ? "axis" : "rule" }),
      svg("text", { x: BOX.left - 7, y: y(tick) + 4, "text-anchor": "end", class: "tick" }, tick.toFixed(1)),
    );
  const every = Math.ceil(count / 13);
  for (const layer of range(count))
    if (layer % every === 0)
      picture.append(
        svg("text", { x: x(layer), y: HEIGHT - 16, "text-anchor": "middle", class: "tick" }, String(layer)),
      );
  picture.append(svg("text", { x: WIDTH - BOX.right, y: HEIGHT - 2, "text-anchor": "end", class: "tick" }, "layers passed (0: embedding)"));
  const guide = svg("path", { class: "guide", visibility: "hidden" });
  picture.append(guide);
  for (const line of [...lines].reverse()) {
    const d = line.values.map((value, layer) => `${layer ? "L" : "M"}${x(layer).toFixed(1)} ${y(value).toFixed(1)}`).join("");
    picture.append(svg("path", { d, class: `line ${line.kind}` }));
    if (count <= 40 && line.kind !== "ground")
      line.values.forEach((value, layer) => picture.append(svg("circle", { cx: x(layer), cy: y(value), r: 3, class: `dot ${line.kind}` })));
  }
  picture.addEventListener("pointermove", (event) => {
    const frame = picture.getBoundingClientRect();
    const at = ((event.clientX - frame.left) / frame.width) * WIDTH;
    const layer = Math.max(0, Math.min(count - 1, Math.round(((at - BOX.left) / (WIDTH - BOX.left - BOX.right)) * (count - 1))));
    guide.setAttribute("d", `M${x(layer)} ${BOX.top}V${HEIGHT - BOX.bottom}`);
    guide.setAttribute("visibility", "visible");
    tip(event.clientX, event.clientY, [layer ? `${layer} layer${layer > 1 ? "s" : ""} passed` : "embedding", ...lines.map((l) => `${l.name}: ${l.values[layer].toFixed(3)}`)]);
  });
  picture.addEventListener("pointerleave", () => {
    guide.setAttribute("visibility", "hidden");
    hideTip();
  });
  return el(
    "figure",
    { class: "chart-box" },
    el("h3", {}, heading),
    el("p", { class: "caption" }, caption),
    picture,
    el("div", { class: "keys" }, ...lines.map((line) => el("span", { class: `key ${line.kind}` }, line.name))),
    el(
      "details",
      {},
      el("summary", {}, "Numbers"),
      el(
        "div",
        { class: "scroll-x" },
        el(
          "table",
          {},
          el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "layers passed (0: embedding)"), ...range(count).map((i) => el("th", { scope: "col" }, i ? i - 1 : "emb.")))),
          el("tbody", {}, ...lines.map((line) => el("tr", {}, el("th", { scope: "row" }, line.name), ...line.values.map((v) => el("td", {}, v.toFixed(3)))))),
        ),
      ),
    ),
  );
}
