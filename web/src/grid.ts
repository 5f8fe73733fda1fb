// Layers down, heads across, a small heat map in every place.

import { any, type App, type Changed, type Panel, show } from "./app.ts";
import { colour } from "./colour.ts";
import { choice, el } from "./dom.ts";
import { arrow, name } from "./bidi.ts";
import { cellOf, gridOf, listen, selectCell } from "./head-cells.ts";
import { range, type Reading } from "./reading.ts";
import { type Sheet, saveControls } from "./save.ts";
import { snapshot } from "./snapshot.ts";
import { rolesOf } from "./roles.ts";

const FINEST = 48; // a small map has no room for more rows; beyond, the strongest of each group is drawn

export class GridPanel implements Panel {
  readonly element: HTMLElement;
  private readonly heads: number;
  private readonly cells: HTMLElement[];
  private readonly controls = el("div", { class: "controls" });
  private readonly caption = el("p", { class: "caption" });
  private readonly scroll: HTMLElement;

  constructor(private readonly app: App) {
    const { layers, heads } = app.page.model;
    this.heads = heads;
    this.cells = range(layers * heads).map(cellOf);
    const body = gridOf(layers, heads, this.cells);
    listen(body, this.cells, heads, { pick: (place) => this.pick(place), lines: (place) => [`head ${this.headAt(place).join(".")}`, this.label(place)] });
    this.scroll = el("div", { class: "grid-scroll" }, body);
    const save = saveControls(app, {
      what: "the heads",
      part: () => "heads",
      figure: () => this.drawing(body),
      sheet: () => this.sheet(),
    });
    this.element = el(
      "section",
      { class: "panel", "aria-labelledby": "h-grid" },
      el("div", { class: "panel-head" }, el("h2", { id: "h-grid" }, "All heads"), this.controls, save),
      this.caption,
      this.scroll,
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
    const { layer, head } = this.app.state;
    selectCell(this.cells, layer * this.heads + head, this.scroll);
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
      return `${arrow(unitText[pair[0]], unitText[pair[1]])} ${show(weight)}`;
    }
    const strongest = `strongest key gets ${show(data.heads.strongest[place])} on average`;
    const kind = kindOf(this.app.reading, place);
    const roles = rolesOf(this.app, place).map((role) => `; in the atlas: ${role}`).join("");
    return (kind ? `${kind.long} ${show(kind.share)}` : strongest) + roles;
  }

  private drawing(body: HTMLElement): SVGSVGElement {
    const { app, scroll } = this;
    const { theme, own, layer, head } = app.state;
    const top = scroll.scrollTop;
    scroll.scrollTop = 0; // else the names of the columns stand over the rows that are in view
    const figure = snapshot(body, `${app.page.model.name}: all heads`, this.caption.textContent!, own ? undefined : { theme, high: app.high(layer, head) });
    scroll.scrollTop = top;
    return figure;
  }

  private sheet(): Sheet {
    const { data, layers, heads } = this.app.reading;
    const pair = this.pair();
    const names = Object.keys(data.heads) as (keyof typeof data.heads)[];
    const more = pair ? [`${this.app.reading.unitText[pair[0]]} → ${this.app.reading.unitText[pair[1]]}`] : [];
    return {
      header: ["layer", "head", "mostly on", ...names, ...more],
      rows: range(layers * heads).map((place) => [
        ...this.headAt(place),
        kindOf(this.app.reading, place)?.long ?? "",
        ...names.map((name) => data.heads[name][place]),
        ...(pair ? [this.app.reading.between(...pair, ...this.headAt(place))] : []),
      ]),
    };
  }

  // --- View ---

  private draw(): void {
    const { app, cells } = this;
    const { state, reading } = app;
    const pair = this.shownPair();
    const values = pair && cells.map((_, place) => reading.between(...pair, ...this.headAt(place)));
    const shown = reading.shown(state.hide);
    cells.forEach((cell, place) => {
      const [layer, head] = this.headAt(place);
      const canvas = cell.firstElementChild as HTMLCanvasElement;
      const tint = (value: number) => colour(state.theme, value, app.high(layer, head));
      if (values) paint(canvas, new Float32Array([values[place]]), [0], 1, tint);
      else paint(canvas, reading.map(layer, head, state.hide), shown, reading.side, tint);
      cell.setAttribute("aria-label", `head ${layer}.${head}: ${this.label(place)}`);
      cell.lastElementChild!.textContent = values ? values[place].toFixed(2) : (kindOf(reading, place)?.short ?? "");
    });
    this.explain(pair && pair.map((unit) => name(reading.unitText[unit])));
  }

  /** Write the caption, of a pair of words or of the maps. */
  private explain(names: string[] | null): void {
    const { state, reading } = this.app;
    const block = reading.data.map.block;
    this.caption.textContent = names
      ? `How much “${names[0]}” looks at “${names[1]}” in every head: one square per head.`
      : `Each square is one head: rows are the tokens that look, columns the tokens looked at, both in reading order${
          block > 1 ? `, in blocks of ${block} tokens` : ""
        }. Under it, what takes more than half of its attention: the previous token, the token itself, the next, or ${reading.setApart}.${
          state.own ? " Every head has its own colour scale, from 0 to its largest cell." : ""
        }`;
  }

  private buttons(): void {
    const { app, controls } = this;
    const pair = this.pair();
    const { grid, own } = app.state;
    controls.replaceChildren();
    if (pair) {
      const [query, key] = pair.map((unit) => app.reading.unitText[unit]);
      controls.append(
        choice("What the squares show", [["maps", "Maps"], ["pair", arrow(query, key)]], grid, (grid) => app.set({ grid })),
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

  private pick(place: number): void {
    const [layer, head] = this.headAt(place);
    this.app.set({ layer, head, scope: "head" });
  }
}

/** What a head mostly does on this text, in short and in full, and the share of its attention that does it. */
export interface Kind {
  short: string;
  long: string;
  share: number;
}

/** The kind of a head, if more than half of its attention does one thing, and twice one key's even share. */
export function kindOf({ data, setApart }: Reading, place: number): Kind | null {
  const { heads, even, keys } = data;
  const kinds: [string, string, number[]][] = [
    ["prev", "previous token", heads.previous],
    ["self", "the token itself", heads.own],
    ["next", "next token", heads.next],
    [keys === null ? "spec" : "quiet", setApart, heads.apart],
  ];
  const found = kinds.find(([, , shares]) => shares[place] > Math.max(0.5, 2 * even.share));
  return found ? { short: found[0], long: found[1], share: found[2][place] } : null;
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
