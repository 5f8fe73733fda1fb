// The heat map of a head over a short text: numbers under the pointer and the arrow keys, a click selects a pair.

import { type App, show, times } from "./app.ts";
import { arrow } from "./bidi.ts";
import { svg } from "./dom.ts";
import { band, drawFigure, type Layout, SIDE } from "./figure.ts";
import type { Reading } from "./reading.ts";
import { hideTip, tip } from "./tip.ts";

type Cell = [number, number]; // row and column among the cells that are drawn

const STEPS: Record<string, Cell> = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

export class MapView {
  private layout!: Layout;
  private element!: SVGSVGElement;
  private cursor: Cell = [0, 0];
  private readonly outline = svg("rect", { class: "cursor", visibility: "hidden" });

  constructor(
    private readonly app: App,
    private readonly text: number,
  ) {}

  private get reading(): Reading {
    return this.app.readings[this.text];
  }

  /** Draw the map of the selected head over the text. */
  figure(): SVGSVGElement {
    const { layer, head } = this.app.state;
    const { figure, layout } = drawFigure(this.app, false, this.text);
    this.layout = layout;
    this.element = figure;
    const row = band(this.app, layout, this.text);
    if (row) figure.append(svg("rect", { class: "band", ...row }));
    figure.append(this.outline);
    this.point(null);
    figure.setAttribute("tabindex", "0");
    figure.setAttribute("data-focus", `figure ${this.text}`);
    figure.setAttribute("role", "img");
    figure.setAttribute("aria-label", `Heat map of head ${layer}.${head}. Arrow keys read the cells, Enter selects.`);
    this.listen(figure);
    return figure;
  }

  private listen(figure: SVGSVGElement): void {
    figure.addEventListener("pointermove", (event) => {
      const cell = this.locate(event);
      this.point(cell);
      if (cell) tip(event.clientX, event.clientY, this.describe(cell));
      else hideTip();
    });
    figure.addEventListener("pointerleave", () => {
      this.point(null);
      hideTip();
    });
    figure.addEventListener("click", (event) => {
      const cell = this.locate(event);
      if (cell) this.choose(cell);
    });
    figure.addEventListener("keydown", (event) => this.press(event));
  }

  private press(event: KeyboardEvent): void {
    if (event.key === "Enter") this.choose(this.cursor);
    const step = STEPS[event.key];
    if (!step) return;
    const last = this.layout.shown.length - 1;
    const within = (value: number) => Math.min(last, Math.max(0, value));
    this.point([within(this.cursor[0] + step[0]), within(this.cursor[1] + step[1])]);
    this.app.say(this.describe(this.cursor).join(", "));
    event.preventDefault();
  }

  /** The cell under the pointer. */
  private locate(event: MouseEvent): Cell | null {
    const { top, left, cell, shown } = this.layout;
    const box = this.element.getBoundingClientRect();
    const unit = SIDE / box.width;
    const i = Math.floor(((event.clientY - box.top) * unit - top) / cell);
    const j = Math.floor(((event.clientX - box.left) * unit - left) / cell);
    return i >= 0 && j >= 0 && i < shown.length && j < shown.length ? [i, j] : null;
  }

  /** Outline a cell, or none. */
  private point(cell: Cell | null): void {
    const { outline, layout } = this;
    outline.setAttribute("visibility", cell ? "visible" : "hidden");
    if (!cell) return;
    this.cursor = cell;
    outline.setAttribute("x", String(layout.left + cell[1] * layout.cell));
    outline.setAttribute("y", String(layout.top + cell[0] * layout.cell));
    outline.setAttribute("width", String(layout.cell));
    outline.setAttribute("height", String(layout.cell));
  }

  /** Lines about a cell, for the tip and for screen readers. */
  private describe([i, j]: Cell): string[] {
    const { reading } = this;
    const { state } = this.app;
    const [row, column] = [this.layout.shown[i], this.layout.shown[j]];
    const share = reading.map(state.layer, state.head, state.hide)[row * reading.side + column];
    const even = 1 / reading.visible(row);
    const first = arrow(reading.spelled(row), reading.spelled(column));
    if (!reading.sees(row, column)) return [first, "not visible: the future"];
    return [first, `${show(share)}  (even ${show(even)}, ${times(share, even)})`, `tokens ${row} → ${column}`];
  }

  /** Select the pair of a cell. */
  private choose([i, j]: Cell): void {
    const [query, key] = [this.layout.shown[i], this.layout.shown[j]];
    const from = this.app.state.direction === "from";
    this.app.set({ text: this.text, token: from ? query : key, other: from ? key : query, scope: "head" });
  }
}
