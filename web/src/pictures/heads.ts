// Every head over the picture: where the selected patch looks in each of them.

import { any, type App, type Changed, type Panel, percent, show } from "../app.ts";
import { el } from "../dom.ts";
import { kindOf } from "../grid.ts";
import { cellOf, gridOf, listen, selectCell } from "../head-cells.ts";
import { range } from "../reading.ts";
import { rolesOf } from "../roles.ts";
import { type Cell, saveControls, type Sheet } from "../save.ts";
import { snapshot } from "../snapshot.ts";
import type { Picture } from "./data.ts";
import { drawPicture } from "./draw.ts";

const SMALL = 96; // pixels of a small picture

export class PictureHeadsPanel implements Panel {
  readonly element: HTMLElement;
  private readonly cells: HTMLElement[];
  private readonly heads: number;
  private readonly caption = el("p", { class: "caption" });
  private readonly scroll: HTMLElement;

  constructor(
    private readonly app: App,
    private readonly pictures: Picture[],
  ) {
    const { layers, heads } = app.page.model;
    this.heads = heads;
    this.cells = range(layers * heads).map(cellOf);
    const body = gridOf(layers, heads, this.cells);
    body.classList.add("of-pictures");
    listen(body, this.cells, heads, { pick: (place) => this.pick(place), lines: (place) => [`head ${this.headAt(place).join(".")}`, ...this.describe(place)] });
    this.scroll = el("div", { class: "grid-scroll" }, body);
    const save = saveControls(app, {
      what: "the heads",
      part: () => "heads",
      figure: () => snapshot(body, `${app.page.model.name}: all heads`, this.caption.textContent!),
      sheet: () => this.sheet(),
    });
    this.element = el("section", { class: "panel", "aria-labelledby": "h-grid" }, el("div", { class: "panel-head" }, el("h2", { id: "h-grid" }, "All heads"), save), this.caption, this.scroll);
    this.draw();
    this.mark();
  }

  update(changed: Changed): void {
    if (any(changed, "text", "token", "direction", "theme", "veil")) this.draw();
    if (any(changed, "layer", "head")) this.mark();
  }

  shown(): void {
    this.mark();
  }

  private get picture(): Picture {
    return this.pictures[this.app.state.text];
  }

  private row(place: number): Float32Array | null {
    const { token, direction } = this.app.state;
    if (token === null) return null;
    const [layer, head] = this.headAt(place);
    return this.picture.row(this.picture.partOf(token), { direction, scope: "head", layer, head });
  }

  private headAt(place: number): [number, number] {
    return [Math.floor(place / this.heads), place % this.heads];
  }

  private draw(): void {
    const { app, picture } = this;
    const { state, reading } = app;
    const veil = state.veil === "none" ? "light" : state.veil;
    this.cells.forEach((cell, place) => {
      drawPicture(cell.firstElementChild as HTMLCanvasElement, picture, SMALL, this.row(place), veil, state.theme);
      const kind = kindOf(reading, place);
      cell.lastElementChild!.textContent = kind && (kind.short === "self" || kind.short === "spec") ? kind.short : "";
      cell.setAttribute("aria-label", `head ${this.headAt(place).join(".")}: ${this.describe(place).join(", ")}`);
    });
    const what = state.token === null ? null : reading.spelled(state.token);
    this.caption.textContent =
      what === null
        ? "Select a patch, or a special token, to see where it looks in every head."
        : `${state.direction === "from" ? `Where ${what} looks` : `Who looks at ${what}`} in every head, each with its own scale up to its strongest patch.` +
          " Under it, what takes more than half of the head’s attention over the whole picture: special tokens, or the patch itself.";
  }

  private describe(place: number): string[] {
    const { picture, app } = this;
    const row = this.row(place);
    const roles = rolesOf(app, place).map((role) => `in the atlas: ${role}`);
    if (!row) return [`strongest key gets ${show(app.reading.data.heads.strongest[place])} on average`, ...roles];
    const { before } = picture.data;
    const best = row.subarray(before).reduce((best, value, at, all) => (value > all[best] ? at : best), 0) + before;
    const special = row.subarray(0, before).reduce((sum, value) => sum + value, 0);
    const lines = [`most on ${app.reading.spelled(picture.tokenOf(best))}: ${show(row[best])}`];
    if (before && app.state.direction === "from") lines.push(`special tokens: ${percent(special)}`);
    return [...lines, ...roles];
  }

  private sheet(): Sheet {
    const { picture, app } = this;
    const places = range(this.cells.length);
    const names = range(picture.parts).map((part) => app.reading.spelled(picture.tokenOf(part)));
    return { header: ["layer", "head", ...names], rows: places.map((place): Cell[] => [...this.headAt(place), ...(this.row(place) ?? names.map(() => null))]) };
  }

  private pick(place: number): void {
    const [layer, head] = this.headAt(place);
    this.app.set({ layer, head, scope: "head" });
  }

  private mark(): void {
    const { layer, head } = this.app.state;
    selectCell(this.cells, layer * this.heads + head, this.scroll);
  }
}
