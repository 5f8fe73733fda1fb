// The heat map of a long text: it is zoomed and moved, and shows the finest blocks that are kept of what is in view.

import { type App, show, times } from "./app.ts";
import { arrow } from "./bidi.ts";
import { el, svg } from "./dom.ts";
import { type Grid, Levels, type Part } from "./levels.ts";
import type { Reading } from "./reading.ts";
import { followed } from "./text-model.ts";
import { hideTip, tip } from "./tip.ts";
import { axes, type Frame, frameOf, paintGrid, zoomFigure } from "./zoom-figure.ts";

const STEP = 2; // of the buttons and keys
const WHEEL = 0.0022; // per pixel that a wheel turns
const MOVED = 4; // pixels from which a press is a drag and no click
const NEAR = 36; // tokens along a side, around a word
const STEPS: Record<string, [number, number]> = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

interface Place {
  query: number;
  key: number;
}

export class ZoomMap {
  private readonly levels: Levels;
  private part: Part;
  private grid!: Grid;
  private frame: Frame;
  private cursor: Place = { query: 0, key: 0 };
  private written: string | null = null;
  private drawing = 0;
  private writing = 0;
  private readonly touches = new Map<number, PointerEvent>();
  private moved = 0;
  private readonly canvas = el("canvas", { "aria-hidden": "true" });
  private readonly over = svg("svg", { class: "zoom-over", "aria-hidden": "true" });
  private readonly outline = svg("rect", { class: "cursor", visibility: "hidden" });
  private readonly plot: HTMLElement;
  private readonly note = el("p", { class: "caption zoom-note", role: "status" });
  private readonly element: HTMLElement;

  constructor(
    private readonly app: App,
    private readonly text: number,
    private readonly scaled: (high: number) => void,
  ) {
    this.levels = new Levels(this.reading);
    this.part = { query: 0, key: 0, span: this.levels.whole };
    this.frame = frameOf(this.part, this.reading);
    this.plot = el("div", { class: "zoom-plot", tabindex: 0, role: "application", "aria-roledescription": "heat map", "data-focus": `zoom ${text}` }, this.canvas, this.over);
    const button = (name: string, label: string, click: () => void) =>
      el("button", { type: "button", class: "plain", "aria-label": label, title: label, on: { click } }, name);
    const bar = el(
      "div",
      { class: "zoom-bar", role: "group", "aria-label": "Zoom" },
      button("−", "Zoom out", () => this.zoom(STEP, this.middle())),
      button("+", "Zoom in", () => this.zoom(1 / STEP, this.middle())),
      button("Whole", "Whole map", () => this.show({ query: 0, key: 0, span: this.levels.whole })),
      button("To the word", "Zoom to the selected word", () => this.toWord()),
    );
    const hint = el("p", { class: "quiet zoom-hint" }, "Drag to move. Ctrl and the wheel zoom, the wheel alone after a click; so do + and −, two fingers, and the buttons.");
    this.element = el("div", { class: "zoom-map" }, bar, this.plot, this.note, hint);
    this.listen();
    new ResizeObserver(() => this.schedule()).observe(this.plot);
  }

  /** The map of the selected head, in the state that it has. */
  figure(): HTMLElement {
    const { layer, head, zoom, text } = this.app.state;
    if (text === this.text && zoom !== this.written) {
      this.written = zoom;
      this.part = this.levels.inside(partOf(zoom) ?? { query: 0, key: 0, span: this.levels.whole });
    }
    this.plot.setAttribute("aria-label", `Heat map of head ${layer}.${head}. Plus and minus zoom, arrow keys read the cells, Enter selects, Escape shows the whole.`);
    this.draw();
    return this.element;
  }

  /** The part that is in view, as a drawing of its own. */
  saved(): SVGSVGElement {
    const grid = this.gridNow();
    return zoomFigure(this.app, this.text, this.part, grid, this.noteText(), this.high(grid));
  }

  /** The cells that are in view: first and last query and key, and the share. */
  cells(): [number, number, number, number, number][] {
    const { size, row, column, side, values } = this.gridNow();
    const end = (first: number) => Math.min(first + size, this.reading.length) - 1;
    const found: [number, number, number, number, number][] = [];
    for (let i = 0; i < side; i++)
      for (let j = 0; j < side; j++) {
        const [query, key] = [(row + i) * size, (column + j) * size];
        if (Math.max(query, key) >= this.reading.length || !this.sees(query, key, size)) continue;
        found.push([query, end(query), key, end(key), values[i * side + j]]);
      }
    return found;
  }

  // --- Model ---

  private get reading(): Reading {
    return this.app.readings[this.text];
  }

  private gridNow(): Grid {
    const { layer, head, hide } = this.app.state;
    return this.levels.grid(this.part, layer, head, hide);
  }

  /** The upper end of the colour scale: with a scale of its own the largest share in view. */
  private high(grid: Grid): number {
    const { own, layer, head } = this.app.state;
    return own ? grid.values.reduce((most, value) => Math.max(most, value), 0) || 1 : this.app.high(layer, head);
  }

  private sees(query: number, key: number, size: number): boolean {
    return !this.reading.data.causal || key <= query + size - 1;
  }

  private middle(): Place {
    const { query, key, span } = this.part;
    return { query: query + span / 2, key: key + span / 2 };
  }

  /** Change the span by a factor, so that a place stays where it is. */
  private zoom(factor: number, at: Place): void {
    const { span } = this.part;
    const next = this.levels.inside({ ...this.part, span: span * factor }).span;
    const first = (from: number, fixed: number) => fixed - ((fixed - from) * next) / span;
    this.show({ query: first(this.part.query, at.query), key: first(this.part.key, at.key), span: next });
  }

  private show(part: Part): void {
    this.part = this.levels.inside(part);
    this.schedule();
  }

  /** Show the selected word and its partner, or the strongest key of the word that is kept. */
  private toWord(): void {
    const { state } = this.app;
    const token = followed(this.app, this.text) ?? this.reading.units[this.reading.data.chosen[0] ?? 0][0];
    const from = state.token === null || state.direction === "from";
    let other = this.text === state.text ? state.other : null;
    if (other === null && from) {
      let most = 0;
      for (const [key, weight] of this.levels.keysOf(token)) if (weight > most && !this.reading.apart.has(key)) [other, most] = [key, weight];
    }
    const [query, key] = from ? [token, other ?? token] : [other ?? token, token];
    this.show({ query: query - NEAR / 2, key: key - NEAR / 2, span: NEAR });
    this.app.say(this.noteText());
  }

  // --- View ---

  private schedule(): void {
    if (this.drawing) return;
    this.drawing = requestAnimationFrame(() => {
      this.drawing = 0;
      this.draw();
      clearTimeout(this.writing);
      this.writing = window.setTimeout(() => this.write(), 200);
    });
  }

  /** Write the part in view into the state of the page, so that a link restores it. */
  private write(): void {
    const { query, key, span } = this.part;
    this.written = span >= this.levels.whole ? null : [query, key, span].map(Math.round).join(".");
    if (this.text === this.app.state.text) this.app.set({ zoom: this.written });
  }

  private draw(): void {
    const { app } = this;
    const { theme } = app.state;
    this.frame = frameOf(this.part, this.reading);
    this.grid = this.gridNow();
    const high = this.high(this.grid);
    paintGrid(this.canvas, this.frame, this.grid, this.part, this.plot.clientWidth, theme, high);
    this.scaled(high);
    this.over.setAttribute("viewBox", `0 0 ${this.frame.side} ${this.frame.side}`);
    this.over.replaceChildren(...axes(app, this.text, this.part, this.frame), this.outline);
    this.outline.setAttribute("visibility", "hidden");
    const note = this.noteText();
    if (this.note.textContent !== note) this.note.textContent = note;
    this.plot.classList.toggle("zoomed", this.part.span < this.levels.whole);
  }

  /** What the cells in view are, and how much of it is kept so finely. */
  private noteText(): string {
    const { grid, levels } = this;
    const { size, known, rows } = grid;
    const coarser = levels.sizes[levels.sizes.indexOf(size) - 1];
    if (coarser === undefined) return `Cells of ${size} × ${size} tokens, over the whole text. Zoom in for finer ones.`;
    const part = `${Math.round(100 * known)} % of what is in view is kept so finely`;
    const rest = `elsewhere the share of a larger block is spread evenly over it.`;
    if (size > 1) return `Cells of ${size} × ${size} tokens: ${part}, where weight concentrates; ${rest}`;
    const [first, last] = [Math.floor(this.part.query), Math.min(this.reading.length, Math.ceil(this.part.query + this.part.span)) - 1];
    const singles = `of ${rows.toLocaleString("en")} of these queries the strongest keys of this head are kept`;
    return `Single tokens, queries ${first.toLocaleString("en")} to ${last.toLocaleString("en")}: ${known > 0 ? `${part}; ` : ""}${singles}; ${rest}`;
  }

  /** Lines about a cell, for the tip and for screen readers. */
  private describe({ query, key }: Place): string[] {
    const { reading, levels, grid, app } = this;
    const { size } = grid;
    if (Math.max(query, key) >= reading.length) return ["behind the end of the text"];
    const span = (from: number, of: number) => `${from.toLocaleString("en")}–${(Math.min(from + of, reading.length) - 1).toLocaleString("en")}`;
    if (!this.sees(query, key, size)) return [size === 1 ? `tokens ${query} → ${key}` : `tokens ${span(query, size)} → ${span(key, size)}`, "not visible: the future"];
    const weight = size === 1 ? levels.weight(query, key) : null;
    const even = 1 / reading.visible(query);
    const pair = size === 1 ? [arrow(reading.spelled(query), reading.spelled(key))] : [];
    if (weight !== null) return [...pair, `${show(weight)}  (even ${show(even)}, ${times(weight, even)})`, `tokens ${query} → ${key}`];
    const [value, from] = levels.share(query, key, size, app.state.hide);
    if (from === size) return [`tokens ${span(query, size)} → ${span(key, size)}`, `${show(value)} of these tokens’ attention`, "click: its strongest relation"];
    const whole = levels.share(query, key, from, app.state.hide)[0];
    const block = (at: number) => at - (at % from);
    return [...pair, `in the block ${span(block(query), from)} → ${span(block(key), from)}`, `${show(whole)} of these tokens’ attention; nothing finer is kept here`];
  }

  /** The cell under the pointer, by its first query and key. */
  private locate(event: MouseEvent): Place | null {
    const at = this.tokensAt(event);
    const { query, key, span } = this.part;
    const inside = at.query >= query && at.key >= key && at.query < query + span && at.key < key + span;
    const first = (token: number) => Math.floor(token / this.grid.size) * this.grid.size;
    return inside ? { query: first(at.query), key: first(at.key) } : null;
  }

  private tokensAt(event: MouseEvent): Place {
    const { left, top, map, side } = this.frame;
    const box = this.plot.getBoundingClientRect();
    const at = (place: number, margin: number) => ((place * side) / box.width - margin) / map;
    const { query, key, span } = this.part;
    return { query: query + at(event.clientY - box.top, top) * span, key: key + at(event.clientX - box.left, left) * span };
  }

  /** Outline a cell, or none. */
  private point(place: Place | null): void {
    const { outline, frame, part, grid } = this;
    outline.setAttribute("visibility", place ? "visible" : "hidden");
    if (!place) return;
    this.cursor = place;
    const scale = frame.map / part.span;
    const clamp = (value: number) => Math.min(frame.map, Math.max(0, value));
    const edges = (at: number, first: number) => [clamp((at - first) * scale), clamp((at + grid.size - first) * scale)];
    const [y, x] = [edges(place.query, part.query), edges(place.key, part.key)];
    const set = { x: frame.left + x[0], y: frame.top + y[0], width: x[1] - x[0], height: y[1] - y[0] };
    for (const [name, value] of Object.entries(set)) outline.setAttribute(name, value.toFixed(2));
  }

  // --- Events ---

  private listen(): void {
    const { plot } = this;
    plot.addEventListener("wheel", (event) => this.turn(event), { passive: false });
    plot.addEventListener("pointerdown", (event) => this.press(event));
    plot.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"] as const) plot.addEventListener(name, (event) => this.release(event));
    plot.addEventListener("pointerleave", () => {
      this.point(null);
      hideTip();
    });
    plot.addEventListener("keydown", (event) => this.key(event));
  }

  private turn(event: WheelEvent): void {
    if (!event.ctrlKey && !event.metaKey && document.activeElement !== this.plot) return;
    const lines = event.deltaMode === 1 ? 16 : 1;
    const out = event.deltaY > 0 && this.part.span >= this.levels.whole;
    if (out && !event.ctrlKey) return; // the page goes on scrolling
    event.preventDefault();
    const pinch = event.ctrlKey && Math.abs(event.deltaY) < 50 ? 4 : 1; // a touch pad reports small steps
    this.zoom(Math.exp(event.deltaY * lines * WHEEL * pinch), this.tokensAt(event));
    hideTip();
  }

  private press(event: PointerEvent): void {
    this.touches.set(event.pointerId, event);
    this.moved = this.touches.size > 1 ? Infinity : 0;
    if (event.pointerType !== "touch" || this.part.span < this.levels.whole) this.plot.setPointerCapture(event.pointerId);
  }

  private move(event: PointerEvent): void {
    const before = this.touches.get(event.pointerId);
    if (!before) {
      const cell = this.locate(event);
      this.point(cell);
      if (cell && event.pointerType !== "touch") tip(event.clientX, event.clientY, this.describe(cell));
      else hideTip();
      return;
    }
    hideTip();
    const others = [...this.touches].filter(([id]) => id !== event.pointerId).map(([, touch]) => touch);
    this.moved += Math.hypot(event.clientX - before.clientX, event.clientY - before.clientY);
    if (this.moved < MOVED) return;
    this.touches.set(event.pointerId, event);
    if (others.length) this.pinch(others[0], before, event);
    else if (this.part.span < this.levels.whole) {
      const [from, to] = [this.tokensAt(before), this.tokensAt(event)];
      this.show({ ...this.part, query: this.part.query + from.query - to.query, key: this.part.key + from.key - to.key });
    }
  }

  /** Two fingers: their distance zooms around the one that rests. */
  private pinch(rest: PointerEvent, before: PointerEvent, after: PointerEvent): void {
    const apart = (event: PointerEvent) => Math.max(20, Math.hypot(event.clientX - rest.clientX, event.clientY - rest.clientY));
    this.zoom(apart(before) / apart(after), this.tokensAt(rest));
  }

  private release(event: PointerEvent): void {
    const clicked = this.touches.delete(event.pointerId) && event.type === "pointerup" && this.moved < MOVED;
    if (!clicked || this.touches.size) return;
    const cell = this.locate(event);
    if (cell) this.choose(cell);
  }

  private key(event: KeyboardEvent): void {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { part, grid } = this;
    const step = STEPS[event.key];
    if (event.key === "+" || event.key === "=") this.zoom(1 / STEP, this.inView());
    else if (event.key === "-") this.zoom(STEP, this.inView());
    else if (event.key === "0" || event.key === "Escape") this.show({ query: 0, key: 0, span: this.levels.whole });
    else if (event.key === "Enter") this.choose(this.inView());
    else if (step) {
      const at = this.inView();
      const last = Math.floor((this.reading.length - 1) / grid.size) * grid.size;
      const within = (value: number) => Math.min(last, Math.max(0, value));
      const next = { query: within(at.query + step[0] * grid.size), key: within(at.key + step[1] * grid.size) };
      const shift = (place: number, first: number) => Math.min(place, Math.max(first, place + grid.size - part.span));
      const moved = this.levels.inside({ ...part, query: shift(next.query, part.query), key: shift(next.key, part.key) });
      this.part = moved;
      this.draw();
      this.schedule();
      this.point(next);
      this.app.say(this.describe(next).join(", "));
    } else return;
    if (!step && event.key !== "Enter") this.app.say(this.noteText());
    event.preventDefault();
  }

  /** The cell of the cursor; the first one in view, if it has left the view. */
  private inView(): Place {
    const { part, cursor, grid } = this;
    const inside = (at: number, first: number) => at + grid.size > first && at < first + part.span;
    const aligned = (at: number) => Math.floor(at / grid.size) * grid.size;
    if (inside(cursor.query, part.query) && inside(cursor.key, part.key)) return { query: aligned(cursor.query), key: aligned(cursor.key) };
    return { query: aligned(part.query + part.span / 2), key: aligned(part.key + part.span / 2) };
  }

  /** Select the pair of a cell: the single tokens, or the strongest relation inside that is kept. */
  private choose({ query, key }: Place): void {
    const found = this.strongest(query, key, this.grid.size);
    if (!found) return this.app.say("No relation of this block is among those kept.");
    const from = this.app.state.direction === "from";
    this.app.set({ text: this.text, token: found[from ? 0 : 1], other: found[from ? 1 : 0], scope: "head" });
  }

  /** The strongest kept relation of a cell, in this head if there is one, else in any. */
  private strongest(row: number, column: number, size: number): [number, number] | null {
    const { reading, levels } = this;
    let best: [number, number] | null = null;
    let most = -1;
    const better = (query: number, key: number, score: number) => {
      if (key >= column && key < column + size && score > most) [most, best] = [score, [query, key]];
    };
    for (let query = row; query < Math.min(row + size, reading.length); query++) {
      for (const [key, weight] of levels.keysOf(query)) better(query, key, 1 + weight);
      for (const [, key, , weight] of reading.kept(query, "from")) better(query, key, weight);
    }
    if (!best && size === 1 && Math.max(row, column) < reading.length && this.sees(row, column, 1)) return [row, column];
    return best;
  }
}

/** The part that stands in the state of a page, `query.key.span`. */
function partOf(zoom: string | null): Part | null {
  const numbers = zoom?.split(".").map(Number);
  if (numbers?.length !== 3 || !numbers.every((number) => Number.isFinite(number) && number >= 0)) return null;
  return { query: numbers[0], key: numbers[1], span: numbers[2] };
}
