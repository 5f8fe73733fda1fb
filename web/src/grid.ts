// Layers down, heads across, a small heat map in every place.

import { any, type App, type Changed, type Panel, show } from "./app.ts";
import { colour } from "./colour.ts";
import { arrowStep, choice, el } from "./dom.ts";
import { legend } from "./legend.ts";
import { range } from "./reading.ts";
import { hideTip, tip } from "./tip.ts";

const FINEST = 48; // a small map has no room for more rows; beyond, the strongest of each group is drawn

export class GridPanel implements Panel {
  readonly element: HTMLElement;
  private readonly heads: number;
  private readonly cells: HTMLElement[];
  private readonly controls = el("div", { class: "controls" });
  private readonly caption = el("p", { class: "caption" });
  private readonly scale = el("div", { class: "legend-line" });
  private readonly scroll: HTMLElement;

  constructor(private readonly app: App) {
    const { layers, heads } = app.page.model;
    this.heads = heads;
    this.cells = range(layers * heads).map(cellOf);
    const body = gridOf(layers, heads, this.cells);
    this.listen(body);
    this.scroll = el("div", { class: "grid-scroll" }, body);
    this.element = el(
      "section",
      { class: "panel", "aria-labelledby": "h-grid" },
      el("div", { class: "panel-head" }, el("h2", { id: "h-grid" }, "All heads"), this.controls),
      this.caption,
      this.scroll,
      el("div", { class: "under" }, this.scale),
    );
    this.buttons();
    this.draw();
    this.shown();
  }

  update(changed: Changed): void {
    this.buttons();
    const pair = this.app.state.grid === "pair" && any(changed, "token", "other", "direction");
    if (pair || any(changed, "text", "hide", "own", "theme", "grid")) this.draw();
    if (any(changed, "layer", "head")) this.shown();
  }

  /** Show which head is selected, and scroll it into view without scrolling the page. */
  shown(): void {
    const { cells, scroll } = this;
    const at = this.app.state.layer * this.heads + this.app.state.head;
    cells.forEach((cell, place) => {
      cell.setAttribute("aria-selected", String(place === at));
      cell.tabIndex = place === at ? 0 : -1;
    });
    const row = cells[at].parentElement!;
    const [top, bottom] = [row.offsetTop - 30, row.offsetTop + row.offsetHeight + 4];
    if (top < scroll.scrollTop || bottom > scroll.scrollTop + scroll.clientHeight)
      scroll.scrollTop = (top + bottom - scroll.clientHeight) / 2;
  }

  // --- Model ---

  /** The selected pair of units, query first, if a partner was picked. */
  private pair(): [number, number] | null {
    const { token, other, direction } = this.app.state;
    if (token === null || other === null || !this.app.reading.exact) return null;
    const [a, b] = [this.app.reading.unitOf[token], this.app.reading.unitOf[other]];
    return direction === "from" ? [a, b] : [b, a];
  }

  /** The pair that the squares show, if they show one. */
  private shownPair(): [number, number] | null {
    return this.app.state.grid === "pair" ? this.pair() : null;
  }

  private headAt(place: number): [number, number] {
    return [Math.floor(place / this.heads), place % this.heads];
  }

  private label(place: number): string {
    const pair = this.shownPair();
    const { unitText, data } = this.app.reading;
    if (pair) {
      const weight = this.app.reading.between(...pair, ...this.headAt(place));
      return `${unitText[pair[0]]} → ${unitText[pair[1]]} ${show(weight)}`;
    }
    const strongest = `strongest key gets ${show(data.heads.strongest[place])} on average`;
    return headName(data.heads, place, data.even.share) ?? strongest;
  }

  // --- View ---

  private draw(): void {
    const { app, cells } = this;
    const { state, reading } = app;
    const pair = this.shownPair();
    const values = pair && cells.map((_, place) => reading.between(...pair, ...this.headAt(place)));
    const high = values ? Math.max(...values) || 1 : 0;
    const shown = reading.shown(state.hide);
    cells.forEach((cell, place) => {
      const [layer, head] = this.headAt(place);
      const canvas = cell.firstElementChild as HTMLCanvasElement;
      if (values) paint(canvas, new Float32Array([values[place]]), [0], 1, (v) => colour(state.theme, v, high));
      else {
        const top = app.high(layer, head);
        paint(canvas, reading.map(layer, head, state.hide), shown, reading.side, (v) => colour(state.theme, v, top));
      }
      cell.setAttribute("aria-label", `head ${layer}.${head}: ${this.label(place)}`);
    });
    this.explain(pair && pair.map((unit) => reading.unitText[unit]), high);
  }

  /** Write the caption and the legend, of a pair of words or of the maps. */
  private explain(names: string[] | null, high: number): void {
    const { state, reading } = this.app;
    const block = reading.data.map.block;
    this.caption.textContent = names
      ? `How much “${names[0]}” looks at “${names[1]}” in every head: one square per head.`
      : `Each square is one head: rows are the tokens that look, columns the tokens looked at, both in reading order${
          block > 1 ? `, in blocks of ${block} tokens` : ""
        }. Click one to see it large.`;
    const unit = !names && block > 1 ? "share of attention on a block" : "share of attention";
    const own = "Every head has its own colour scale, from 0 to its largest cell.";
    this.scale.replaceChildren(
      !names && state.own
        ? el("p", { class: "caption" }, own)
        : legend(state.theme, names ? high : this.app.high(0, 0), unit),
    );
  }

  private buttons(): void {
    const { app, controls } = this;
    const pair = this.pair();
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
  }

  // --- Events ---

  private listen(body: HTMLElement): void {
    body.addEventListener("click", (event) => {
      const place = placeOf(event);
      if (place !== null) this.pick(place);
    });
    body.addEventListener("keydown", (event) => {
      const place = placeOf(event);
      if (place === null) return;
      const next = arrowStep(event.key, place, this.cells.length, this.heads);
      if (next === place) return;
      this.pick(next);
      this.cells[next].focus();
      event.preventDefault();
    });
    body.addEventListener("pointermove", (event) => {
      const place = placeOf(event);
      if (place === null || event.pointerType === "touch") return hideTip();
      tip(event.clientX, event.clientY, [`head ${this.headAt(place).join(".")}`, this.label(place)]);
    });
    body.addEventListener("pointerleave", hideTip);
  }

  private pick(place: number): void {
    const [layer, head] = this.headAt(place);
    this.app.set({ layer, head, scope: "head" });
  }
}

function cellOf(place: number): HTMLElement {
  const canvas = el("canvas", { "aria-hidden": "true" });
  return el("button", { type: "button", class: "cell", role: "gridcell", tabindex: -1, "data-place": place }, canvas);
}

function gridOf(layers: number, heads: number, cells: HTMLElement[]): HTMLElement {
  const names = range(heads).map((head) => el("span", { class: "column", role: "columnheader" }, head));
  const corner = el("span", { class: "corner", role: "columnheader" }, "layer \\ head");
  const rows = range(layers).map((layer) => {
    const name = el("span", { class: "line", role: "rowheader" }, layer);
    return el("div", { class: "grid-row", role: "row" }, name, ...cells.slice(layer * heads, (layer + 1) * heads));
  });
  const grid = el(
    "div",
    { class: "grid", role: "grid", "aria-label": "Heads. Arrow keys move, Enter shows a head." },
    el("div", { class: "grid-row", role: "row" }, corner, ...names),
    ...rows,
  );
  grid.style.setProperty("--heads", String(heads));
  return grid;
}

/** The cell that an event happened on, if any. */
function placeOf(event: Event): number | null {
  const target = (event.target as HTMLElement).closest?.<HTMLElement>("[data-place]");
  return target ? Number(target.dataset.place) : null;
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
