// The numbers of a head: what it does on this text beside an even spread, and what it gives by distance.

import { type App, type Panel, show } from "./app.ts";
import { el, svg } from "./dom.ts";
import { offsetBin } from "./ranking.ts";
import { range } from "./reading.ts";
import { type Cell, type Sheet, saveControls } from "./save.ts";
import { snapshot } from "./snapshot.ts";
import { hideTip, tip } from "./tip.ts";

const FARTHEST = 8; // tokens; beyond, distances are joined

export function factsPanel(app: App): Panel {
  const title = el("h2", { id: "h-facts" });
  const body = el("div", { class: app.readings.length > 1 ? "facts stacked" : "facts" });
  const save = saveControls(app, {
    what: "the numbers",
    part: () => `numbers-${app.state.layer}.${app.state.head}`,
    figure: () => snapshot(body, title.textContent!, app.page.model.name),
    sheet: () => sheet(app),
  });
  const element = el("section", { class: "panel", "aria-labelledby": "h-facts" }, el("div", { class: "panel-head" }, title, save), body);
  const draw = () => {
    title.textContent = `Head ${app.state.layer}.${app.state.head} in numbers`;
    body.replaceChildren(table(app), profile(app));
  };
  draw();
  return {
    element,
    update(changed) {
      if (changed.has("text") || changed.has("layer") || changed.has("head")) draw();
    },
  };
}

const place = ({ state, page }: App): number => state.layer * page.model.heads + state.head;

type Row = [name: string, value: number, even: number];

function rowsOf(app: App): Row[] {
  const { heads, even, causal } = app.reading.data;
  const at = place(app);
  return [
    ["on the strongest key", heads.strongest[at], even.share],
    ["on the previous token", heads.previous[at], even.share],
    ["on the token itself", heads.own[at], even.share],
    ...(causal ? [] : ([["on the next token", heads.next[at], even.share]] as Row[])),
    [`on ${app.reading.setApart}`, heads.apart[at], app.reading.evenApart()],
    ["distance, tokens", heads.distance[at], even.distance],
    ["entropy, nats", heads.entropy[at], even.entropy],
  ];
}

function table(app: App): HTMLElement {
  const head = ["attention", "this head", "if even"].map((name) => el("th", { scope: "col" }, name));
  const body = rowsOf(app).map(([name, value, even]) =>
    el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, show(value)), el("td", { class: "quiet" }, show(even))),
  );
  return el(
    "table",
    {},
    el("caption", {}, `Mean over ${app.reading.length.toLocaleString("en")} tokens${app.readings.length > 1 ? ` of text ${app.state.text + 1}` : ""}`),
    el("thead", {}, el("tr", {}, ...head)),
    el("tbody", {}, ...body),
  );
}

/** What the head gives to the token at each offset, mean over the text: [offset, mean], those that exist. */
function offsetsOf(app: App): [number, number][] {
  const { mean, count } = app.reading.data.offsets;
  const at = place(app) * count.length;
  return range(2 * FARTHEST + 1)
    .map((n) => n - FARTHEST)
    .filter((offset) => (count[offsetBin(offset)] ?? 0) > 0)
    .map((offset) => [offset, mean.values[at + offsetBin(offset)]]);
}

/** The offsets as bars. */
function profile(app: App): HTMLElement {
  const [width, height, left, bottom, top] = [300, 156, 42, 34, 10];
  const offsets = offsetsOf(app);
  const even = app.reading.data.even.share;
  const high = Math.max(even, ...offsets.map(([, mean]) => mean)) * 1.05;
  const step = (width - left - 6) / offsets.length;
  const y = (value: number) => top + (1 - value / high) * (height - top - bottom);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "profile", role: "img" });
  picture.append(svg("title", {}, `Mean weight by offset: ${offsets.map(([offset, mean]) => `${offset}: ${show(mean)}`).join(", ")}`));
  for (const value of [0, high / 1.05])
    picture.append(svg("text", { x: left - 5, y: y(value) + 4, "text-anchor": "end", class: "tick" }, value ? show(value) : "0"));
  offsets.forEach(([offset, mean], n) => {
    const x = left + n * step;
    picture.append(svg("rect", { x: x + 1, y: y(mean), width: Math.max(1, step - 2), height: Math.max(0, y(0) - y(mean)), class: "bar-fill", "data-offset": offset }));
    if (offset % 2 === 0) picture.append(svg("text", { x: x + step / 2, y: height - 20, "text-anchor": "middle", class: "tick" }, offset > 0 ? `+${offset}` : offset));
  });
  picture.append(
    svg("path", { d: `M${left} ${y(0)}H${width - 6}`, class: "axis" }),
    svg("path", { d: `M${left} ${y(even)}H${width - 6}`, class: "even-line" }),
    svg("text", { x: (left + width) / 2, y: height - 4, "text-anchor": "middle", class: "tick" }, "offset of the token looked at"),
  );
  picture.addEventListener("pointermove", (event) => {
    const offset = (event.target as SVGElement).dataset?.offset;
    if (offset === undefined) return hideTip();
    tip(event.clientX, event.clientY, [`offset ${offset}`, `mean weight ${show(offsets.find(([o]) => o === Number(offset))![1])}`, `even ${show(even)}`]);
  });
  picture.addEventListener("pointerleave", hideTip);
  const bound = app.reading.exact ? "" : " Of a long text beyond one token: from the strongest keys, a lower bound.";
  return el("figure", {}, el("p", { class: "caption" }, `By distance: mean weight of the token at an offset. Line: if even.${bound}`), picture);
}

function sheet(app: App): Sheet {
  const offsets = offsetsOf(app).map(([offset, mean]): Cell[] => [`at offset ${offset}`, mean, app.reading.data.even.share]);
  return { header: ["attention", "this head", "if even"], rows: [...rowsOf(app), ...offsets] };
}
