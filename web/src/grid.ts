// Layers down, heads across, a small heat map in every place.

import { type App, type Panel, show } from "./app.ts";
import { colour } from "./colour.ts";
import { arrowStep, choice, el } from "./dom.ts";
import { legend } from "./legend.ts";
import { range } from "./reading.ts";
import { hideTip, tip } from "./tip.ts";

const FINEST = 48; // a small map has no room for more rows; beyond, the strongest of each group is drawn

export function gridPanel(app: App): Panel {
  const { layers, heads } = app.page.model;
  const controls = el("div", { class: "controls" });
  const caption = el("p", { class: "caption" });
  const scale = el("div", { class: "legend-line" });
  const cells = range(layers * heads).map((place) => {
    const canvas = el("canvas", { "aria-hidden": "true" });
    return el("button", { type: "button", class: "cell", role: "gridcell", tabindex: -1, "data-place": place }, canvas);
  });
  const body = el(
    "div",
    { class: "grid", role: "grid", "aria-label": "Heads. Arrow keys move, Enter shows a head." },
    el("div", { class: "grid-row", role: "row" }, el("span", { class: "corner", role: "columnheader" }, "layer \\ head"),
      ...range(heads).map((head) => el("span", { class: "column", role: "columnheader" }, head))),
    ...range(layers).map((layer) =>
      el("div", { class: "grid-row", role: "row" }, el("span", { class: "line", role: "rowheader" }, layer),
        ...cells.slice(layer * heads, (layer + 1) * heads)),
    ),
  );
  body.style.setProperty("--heads", String(heads));
  const scroll = el("div", { class: "grid-scroll" }, body);
  const element = el(
    "section",
    { class: "panel", "aria-labelledby": "h-grid" },
    el("div", { class: "panel-head" }, el("h2", { id: "h-grid" }, "All heads"), controls),
    caption,
    scroll,
    el("div", { class: "under" }, scale),
  );

  const placeOf = (event: Event) => {
    const target = (event.target as HTMLElement).closest?.<HTMLElement>("[data-place]");
    return target ? Number(target.dataset.place) : null;
  };
  const pick = (place: number) =>
    app.set({ layer: Math.floor(place / heads), head: place % heads, scope: "head" });
  body.addEventListener("click", (event) => {
    const place = placeOf(event);
    if (place !== null) pick(place);
  });
  body.addEventListener("keydown", (event) => {
    const place = placeOf(event);
    if (place === null) return;
    const next = arrowStep(event.key, place, cells.length, heads);
    if (next === place) return;
    pick(next);
    cells[next].focus();
    event.preventDefault();
  });
  body.addEventListener("pointermove", (event) => {
    const place = placeOf(event);
    if (place === null || event.pointerType === "touch") return hideTip();
    tip(event.clientX, event.clientY, [`head ${Math.floor(place / heads)}.${place % heads}`, label(place)]);
  });
  body.addEventListener("pointerleave", hideTip);

  const pairOf = (): [number, number] | null => {
    const { token, other, direction } = app.state;
    if (token === null || other === null || !app.reading.exact) return null;
    const [a, b] = [app.reading.unitOf[token], app.reading.unitOf[other]];
    return direction === "from" ? [a, b] : [b, a];
  };

  const label = (place: number): string => {
    const [layer, head] = [Math.floor(place / heads), place % heads];
    const pair = app.state.grid === "pair" ? pairOf() : null;
    const { unitText, data } = app.reading;
    if (pair) return `${unitText[pair[0]]} → ${unitText[pair[1]]} ${show(app.reading.between(...pair, layer, head))}`;
    return headName(data.heads, place, data.even.share) ?? `strongest key gets ${show(data.heads.strongest[place])} on average`;
  };

  const draw = () => {
    const { state, reading } = app;
    const pair = state.grid === "pair" ? pairOf() : null;
    let high = 0;
    const values = pair && cells.map((_, place) => reading.between(...pair, Math.floor(place / heads), place % heads));
    if (values) high = Math.max(...values) || 1;
    const shown = reading.shown(state.hide);
    cells.forEach((cell, place) => {
      const [layer, head] = [Math.floor(place / heads), place % heads];
      const canvas = cell.firstElementChild as HTMLCanvasElement;
      if (values) paint(canvas, new Float32Array([values[place]]), [0], 1, (v) => colour(state.theme, v, high));
      else {
        const top = app.high(layer, head);
        paint(canvas, reading.map(layer, head, state.hide), shown, reading.side, (v) => colour(state.theme, v, top));
      }
      cell.setAttribute("aria-label", `head ${layer}.${head}: ${label(place)}`);
    });
    const names = pair && pair.map((unit) => reading.unitText[unit]);
    const block = reading.data.map.block;
    caption.textContent = names
      ? `How much “${names[0]}” looks at “${names[1]}” in every head: one square per head.`
      : `Each square is one head: rows are the tokens that look, columns the tokens looked at, both in reading order${
          block > 1 ? `, in blocks of ${block} tokens` : ""
        }. Click one to see it large.`;
    scale.replaceChildren(
      names
        ? legend(state.theme, high, "share of attention")
        : state.own
          ? el("p", { class: "caption" }, "Every head has its own colour scale, from 0 to its largest cell.")
          : legend(state.theme, app.high(0, 0), block > 1 ? "share of attention on a block" : "share of attention"),
    );
  };

  const select = () => {
    const at = app.state.layer * heads + app.state.head;
    cells.forEach((cell, place) => {
      cell.setAttribute("aria-selected", String(place === at));
      cell.tabIndex = place === at ? 0 : -1;
    });
    // Keep the chosen head in view, without moving the page.
    const row = cells[at].parentElement!;
    const [top, bottom] = [row.offsetTop - 30, row.offsetTop + row.offsetHeight + 4];
    if (top < scroll.scrollTop || bottom > scroll.scrollTop + scroll.clientHeight)
      scroll.scrollTop = (top + bottom - scroll.clientHeight) / 2;
  };

  const buttons = () => {
    const pair = pairOf();
    const { grid, own } = app.state;
    controls.replaceChildren();
    if (pair) {
      const [query, key] = pair.map((unit) => app.reading.unitText[unit]);
      controls.append(
        choice("What the squares show", [["maps", "Maps"], ["pair", `${query} → ${key}`]], grid, (grid) => app.set({ grid })),
      );
    }
    if (!pair || grid === "maps")
      controls.append(
        choice("Colour scale", [["one", "One scale"], ["own", "Own scale"]], own ? "own" : "one", (value) =>
          app.set({ own: value === "own" }),
        ),
      );
  };

  buttons();
  draw();
  select();
  return {
    element,
    update(changed) {
      buttons();
      const pair = app.state.grid === "pair" && ["token", "other", "direction"].some((k) => changed.has(k as "token"));
      if (pair || ["text", "hide", "own", "theme", "grid"].some((key) => changed.has(key as "text"))) draw();
      if (changed.has("layer") || changed.has("head")) select();
    },
    shown: select,
  };
}

/** What a head mostly does on this text, with the number, if more than half of its attention does it. */
export function headName(of: Record<string, number[]>, place: number, even: number): string | null {
  const kinds: [string, string][] = [
    ["previous", "previous token"],
    ["own", "the token itself"],
    ["next", "next token"],
    ["apart", "special tokens and sinks"],
  ];
  for (const [key, text] of kinds) {
    const share = of[key][place];
    if (share > 0.5 && share > 2 * even) return `${text} ${show(share)}`;
  }
  return null;
}

/** Draw a map into a canvas, one pixel per cell, or per group of cells when there are many. */
export function paint(
  canvas: HTMLCanvasElement,
  map: Float32Array,
  shown: number[],
  side: number,
  tint: (value: number) => [number, number, number],
  finest = FINEST,
): void {
  const size = Math.min(shown.length, finest);
  canvas.width = canvas.height = size;
  const strongest = new Float32Array(size * size);
  shown.forEach((row, i) => {
    const y = Math.floor((i * size) / shown.length) * size;
    shown.forEach((column, j) => {
      const at = y + Math.floor((j * size) / shown.length);
      const value = map[row * side + column];
      if (value > strongest[at]) strongest[at] = value;
    });
  });
  const picture = new ImageData(size, size);
  strongest.forEach((value, at) => {
    const [r, g, b] = tint(value);
    picture.data.set([r, g, b, 255], 4 * at);
  });
  canvas.getContext("2d")!.putImageData(picture, 0, 0);
}
