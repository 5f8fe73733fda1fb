// One head, large: its map with exact numbers under the pointer, and what it does in numbers.

import { type App, type Panel, show, times } from "./app.ts";
import { choice, el, svg } from "./dom.ts";
import { band, canDrawLines, drawFigure, drawLines, type Layout, SIDE } from "./figure.ts";
import { headName } from "./grid.ts";
import { legend } from "./legend.ts";
import { savePng, saveSvg } from "./save.ts";
import { hideTip, tip } from "./tip.ts";

/** `apart`: the numbers stand in a panel of their own, `numbers`, for the page to place. */
export function headPanel(app: App, apart: boolean): Panel & { numbers: HTMLElement } {
  const title = el("h2", { id: "h-head" });
  const shapes = el("div", {});
  const frame = el("div", { class: "figure" });
  const facts = el("div", { class: "facts" });
  const caption = el("p", { class: "caption" });
  const scale = el("div", { class: "legend-line" });
  const element = el(
    "section",
    { class: "panel", "aria-labelledby": "h-head" },
    el(
      "div",
      { class: "panel-head" },
      title,
      shapes,
      el(
        "div",
        { class: "controls" },
        el("span", { class: "quiet" }, "Save figure"),
        el("button", { type: "button", class: "plain", on: { click: () => saveSvg(app) } }, "SVG"),
        el("button", { type: "button", class: "plain", on: { click: () => void savePng(app) } }, "PNG"),
      ),
    ),
    caption,
    frame,
    el("div", { class: "under" }, scale),
    !apart && facts,
  );
  const numbersTitle = el("h2", {});
  const numbers = el("section", { class: "panel" }, numbersTitle, apart && facts);
  let layout: Layout;
  let cursor: [number, number] = [0, 0];
  const mark = svg("rect", { class: "cursor", visibility: "hidden" });

  const describe = ([i, j]: [number, number]): string[] => {
    const { reading, state } = app;
    const [row, column] = [layout.shown[i], layout.shown[j]];
    const share = reading.map(state.layer, state.head, state.hide)[row * reading.side + column];
    if (reading.exact) {
      const even = 1 / reading.visible(row);
      const first = `${reading.spelled(row)} → ${reading.spelled(column)}`;
      if (!reading.sees(row, column)) return [first, "not visible: the future"];
      return [first, `${show(share)}  (even ${show(even)}, ${times(share, even)})`, `tokens ${row} → ${column}`];
    }
    const size = reading.data.map.block;
    const span = (block: number) => `${block * size}–${Math.min((block + 1) * size, reading.length) - 1}`;
    if (reading.data.causal && column > row) return [`tokens ${span(row)} → ${span(column)}`, "not visible: the future"];
    return [`tokens ${span(row)} → ${span(column)}`, `${show(share)} of these tokens’ attention`, "click: its strongest relation"];
  };

  const locate = (event: PointerEvent | MouseEvent): [number, number] | null => {
    const figure = frame.firstElementChild!.getBoundingClientRect();
    const unit = SIDE / figure.width;
    const i = Math.floor(((event.clientY - figure.top) * unit - layout.top) / layout.cell);
    const j = Math.floor(((event.clientX - figure.left) * unit - layout.left) / layout.cell);
    return i >= 0 && j >= 0 && i < layout.shown.length && j < layout.shown.length ? [i, j] : null;
  };

  const point = (cell: [number, number] | null) => {
    mark.setAttribute("visibility", cell ? "visible" : "hidden");
    if (!cell) return;
    cursor = cell;
    mark.setAttribute("x", String(layout.left + cell[1] * layout.cell));
    mark.setAttribute("y", String(layout.top + cell[0] * layout.cell));
    mark.setAttribute("width", String(layout.cell));
    mark.setAttribute("height", String(layout.cell));
  };

  const choose = ([i, j]: [number, number]) => {
    const { reading, state } = app;
    let [query, key] = [layout.shown[i], layout.shown[j]];
    if (!reading.exact) {
      const found = strongestIn(app, query, key);
      if (!found) return app.say("No relation of this block is among those kept.");
      [query, key] = found;
    }
    const from = state.direction === "from";
    app.set({ token: from ? query : key, other: from ? key : query, scope: "head" });
  };

  const mapFigure = (): SVGSVGElement => {
    const { state } = app;
    const drawn = drawFigure(app, false);
    layout = drawn.layout;
    const figure = drawn.figure;
    const row = band(app, layout);
    if (row) figure.append(svg("rect", { class: "band", ...row }));
    figure.append(mark);
    point(null);
    figure.setAttribute("tabindex", "0");
    figure.setAttribute("data-focus", "figure");
    figure.setAttribute("role", "img");
    const name = `head ${state.layer}.${state.head}`;
    figure.setAttribute("aria-label", `Heat map of ${name}. Arrow keys read the cells, Enter selects.`);
    figure.addEventListener("pointermove", (event) => {
      const cell = locate(event);
      point(cell);
      if (cell) tip(event.clientX, event.clientY, describe(cell));
      else hideTip();
    });
    figure.addEventListener("pointerleave", () => (point(null), hideTip()));
    figure.addEventListener("click", (event) => {
      const cell = locate(event);
      if (cell) choose(cell);
    });
    figure.addEventListener("keydown", (event) => {
      const step: Record<string, [number, number]> = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
      if (event.key === "Enter") choose(cursor);
      const move = step[event.key];
      if (!move) return;
      const last = layout.shown.length - 1;
      point([Math.min(last, Math.max(0, cursor[0] + move[0])), Math.min(last, Math.max(0, cursor[1] + move[1]))]);
      app.say(describe(cursor).join(", "));
      event.preventDefault();
    });
    return figure;
  };

  const lineFigure = (): SVGSVGElement => {
    const { reading, state } = app;
    const figure = drawLines(app, false);
    figure.setAttribute("role", "img");
    figure.setAttribute("aria-label", `Lines of head ${state.layer}.${state.head}, from each token to those it looks at`);
    const of = (event: Event, name: string) => (event.target as SVGElement).dataset?.[name];
    figure.addEventListener("click", (event) => {
      const [token, direction] = [of(event, "token"), of(event, "side")];
      const pair = of(event, "pair")?.split(" ").map(Number);
      if (token) app.set({ token: Number(token), other: null, direction: direction as "from", scope: "head" });
      else if (pair) app.set({ token: pair[0], other: pair[1], direction: "from", scope: "head" });
    });
    figure.addEventListener("pointermove", (event) => {
      const pair = of(event, "pair")?.split(" ").map(Number);
      if (!pair) return hideTip();
      const [weight, even] = [reading.weight(state.layer, state.head, pair[0], pair[1]), 1 / reading.visible(pair[0])];
      tip(event.clientX, event.clientY, [
        `${reading.spelled(pair[0])} → ${reading.spelled(pair[1])}`,
        `${show(weight)}  (even ${show(even)}, ${times(weight, even)})`,
      ]);
    });
    figure.addEventListener("pointerleave", hideTip);
    return figure;
  };

  const draw = () => {
    const { reading, state, page } = app;
    shapes.replaceChildren();
    if (canDrawLines(app))
      shapes.append(
        choice("Drawn as", [["map", "Map"], ["lines", "Lines"]], state.shape, (shape) => app.set({ shape })),
      );
    const lines = state.shape === "lines" && canDrawLines(app);
    frame.replaceChildren(lines ? lineFigure() : mapFigure());
    title.textContent = `Head ${state.layer}.${state.head}`;
    numbersTitle.textContent = `Head ${state.layer}.${state.head} in numbers`;
    const place = state.layer * page.model.heads + state.head;
    const named = headName(reading.data.heads, place, reading.data.even.share);
    const block = reading.data.map.block;
    caption.textContent =
      `Layer ${state.layer}, head ${state.head}. ` +
      (named ? `On this text it mostly looks at: ${named.replace(/ (\S+)$/, " ($1 of its attention)")}. ` : "") +
      (block > 1 ? `Each cell: the share of a block of ${block} tokens’ attention on another block; a row adds up to 1.` : "Each row adds up to 1.") +
      (state.hide ? " Special tokens and sinks are left out; the numbers stay as they are." : "");
    if (lines) scale.replaceChildren(el("p", { class: "caption" }, "Thicker and stronger: a larger share. Below 2 % of the largest: not drawn."));
    else scale.replaceChildren(legend(state.theme, app.high(state.layer, state.head), "share of attention"));
    facts.replaceChildren(table(app, place));
  };

  draw();
  return {
    element,
    numbers,
    update(changed) {
      if (changed.size === 1 && (changed.has("scope") || changed.has("grid"))) return;
      draw();
    },
  };
}

/** The strongest kept relation between two blocks, in this head if there is one, else in any. */
function strongestIn(app: App, row: number, column: number): [number, number] | null {
  const { reading, state } = app;
  const size = reading.data.map.block;
  const here = state.layer * reading.heads + state.head;
  let best: [number, number] | null = null;
  let most = -1;
  for (let query = row * size; query < Math.min((row + 1) * size, reading.length); query++)
    for (const [, key, head, weight] of reading.kept(query, "from")) {
      const score = weight + (head === here ? 1 : 0);
      if (Math.floor(key / size) === column && score > most) [most, best] = [score, [query, key]];
    }
  return best;
}

function table(app: App, place: number): HTMLElement {
  const { heads, even, causal } = app.reading.data;
  const share = show(even.share);
  const rows: [string, string, string][] = [
    ["on the strongest key", show(heads.strongest[place]), share],
    ["on the previous token", show(heads.previous[place]), share],
    ["on the token itself", show(heads.own[place]), share],
    ...(causal ? [] : ([["on the next token", show(heads.next[place]), share]] as [string, string, string][])),
    ["on special tokens and sinks", show(heads.apart[place]), ""],
    ["distance, tokens", show(heads.distance[place]), show(even.distance)],
    ["entropy, nats", show(heads.entropy[place]), show(even.entropy)],
  ];
  return el(
    "table",
    {},
    el("caption", {}, `Mean over ${app.reading.length.toLocaleString("en")} tokens of this text`),
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "attention"), el("th", { scope: "col" }, "this head"), el("th", { scope: "col" }, "if even"))),
    el("tbody", {}, ...rows.map(([name, value, base]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, value), el("td", { class: "quiet" }, base)))),
  );
}
