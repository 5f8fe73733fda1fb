// All heads of the cross-attention, a small map in every place: rows are written words, columns parts of the source.

import { show } from "../app.ts";
import { colour } from "../colour.ts";
import { choice, el } from "../dom.ts";
import { cellOf, gridOf, listen, selectCell } from "../head-cells.ts";
import { range } from "../reading.ts";
import { saveControls, type Sheet } from "../save.ts";
import { snapshot } from "../snapshot.ts";
import type { Changed, Panel, SourceApp } from "./app.ts";
import { paintMap } from "./map.ts";

const FINEST = 56; // rows and columns of a small map

export class CrossHeadsPanel implements Panel {
  readonly element: HTMLElement;
  private readonly cells: HTMLElement[];
  private readonly controls = el("div", { class: "controls" });
  private readonly caption = el("p", { class: "caption" });
  private own = true;

  constructor(private readonly app: SourceApp) {
    const { layers, heads } = app.cross.data;
    this.cells = range(layers * heads).map(cellOf);
    const body = gridOf(layers, heads, this.cells);
    body.classList.add("of-cross");
    this.own = app.cross.source === null;
    this.cells.forEach((cell, place) => {
      if (!app.cross.has(place)) cell.setAttribute("disabled", "");
    });
    listen(body, this.cells, heads, {
      pick: (place) => app.set({ layer: Math.floor(place / heads), head: place % heads, over: "head" }),
      lines: (place) => [`head ${app.nameOf(place)}`, this.describe(place)],
    });
    const save = saveControls(app, {
      what: "the heads",
      part: () => "cross-heads",
      figure: () => snapshot(body, `${app.page.model.name}: cross-attention of all heads`, this.caption.textContent!, this.own ? undefined : { theme: app.state.theme, high: 1 }),
      sheet: () => this.sheet(),
    });
    this.element = el(
      "section",
      { class: "panel", "aria-labelledby": "h-cross-heads" },
      el("div", { class: "panel-head" }, el("h2", { id: "h-cross-heads" }, "Cross-attention, all heads"), this.controls, save),
      this.caption,
      el("div", { class: "grid-scroll" }, body),
    );
    this.buttons();
    this.draw();
    this.mark();
  }

  update(changed: Changed): void {
    if (changed.has("theme")) this.draw();
    if (changed.has("layer") || changed.has("head")) this.mark();
  }

  private buttons(): void {
    this.controls.replaceChildren(
      choice("Colour scale", [["one", "One scale"], ["own", "Own scale"]], this.own ? "own" : "one", (value) => {
        this.own = value === "own";
        this.buttons();
        this.draw();
      }),
    );
    const { cross } = this.app;
    const what = cross.source ? "words of the source" : "moments of the sound";
    this.caption.textContent =
      `Each field is one head: rows are the written words, columns the ${what}, both in order. “align”: ` +
      (cross.data.named ? "the checkpoint names this head as following the source." : "its weights change most with the word that is written.") +
      (this.own ? " Every head has its own colour scale, from 0 to its largest cell." : " “end”: more than half of its attention is on special tokens.");
  }

  private draw(): void {
    const { app, cells } = this;
    const { cross, state } = app;
    cells.forEach((cell, place) => {
      if (!cross.has(place)) return;
      const rows = range(cross.count).map((word) => cross.row(word, [place]));
      const high = this.own ? Math.max(1e-6, ...rows.map((row) => Math.max(...row))) : 1;
      paintMap(cell.firstElementChild as HTMLCanvasElement, rows, cross.parts, (value) => colour(state.theme, value, high), FINEST, FINEST);
      cell.setAttribute("aria-label", `head ${app.nameOf(place)}: ${this.describe(place)}`);
      cell.lastElementChild!.textContent = this.kind(place);
    });
  }

  /** The share of a head's attention on special tokens of the source, mean over the words. */
  private special(place: number): number {
    const { cross } = this.app;
    const special = [...(cross.source?.special ?? [])];
    return range(cross.count).reduce((sum, word) => sum + special.reduce((part, at) => part + cross.row(word, [place])[at], 0), 0) / Math.max(1, cross.count);
  }

  private kind(place: number): string {
    if (this.app.cross.data.aligning.includes(place)) return "align";
    return this.special(place) > 0.5 ? "end" : "";
  }

  private describe(place: number): string {
    const { cross } = this.app;
    if (!cross.has(place)) return "not kept on this page";
    const strongest = range(cross.count).reduce((sum, word) => sum + Math.max(...cross.row(word, [place])), 0) / Math.max(1, cross.count);
    const special = this.special(place);
    return `${cross.data.aligning.includes(place) ? "aligns; " : ""}strongest part gets ${show(strongest)} on average${special > 0.5 ? `; special tokens get ${show(special)}` : ""}`;
  }

  private sheet(): Sheet {
    const { cross } = this.app;
    const { heads, aligning, kept } = cross.data;
    return {
      header: ["layer", "head", "aligns", "strongest part, mean", "on special tokens"],
      rows: kept.map((place) => [
        Math.floor(place / heads),
        place % heads,
        aligning.includes(place) ? 1 : 0,
        range(cross.count).reduce((sum, word) => sum + Math.max(...cross.row(word, [place])), 0) / Math.max(1, cross.count),
        this.special(place),
      ]),
    };
  }

  private mark(): void {
    const { layer, head } = this.app.state;
    selectCell(this.cells, layer * this.app.cross.data.heads + head);
  }
}
