// All heads as a grid of cells, layers down and heads across: pointer, keyboard, and the cell of the selected head.

import { arrowStep, el } from "./dom.ts";
import { range } from "./reading.ts";
import { hideTip, tip } from "./tip.ts";

interface Names {
  grid: string; // class of the grid, and the beginning of those of its rows
  label: string; // for readers of the page
}

/** A cell with a small drawing. */
export function cellOf(place: number): HTMLElement {
  const canvas = el("canvas", { "aria-hidden": "true" });
  const label = el("span", { class: "kind", "aria-hidden": "true" });
  return el("button", { type: "button", class: "cell", role: "gridcell", tabindex: -1, "data-place": place }, canvas, label);
}

/** The cells in rows, one for each layer, with the numbers of layers and heads. */
export function gridOf(layers: number, heads: number, cells: HTMLElement[], { grid, label }: Names = { grid: "grid", label: "Heads. Arrow keys move, Enter shows a head." }): HTMLElement {
  const names = range(heads).map((head) => el("span", { class: "column", role: "columnheader" }, head));
  const corner = el("span", { class: "corner", role: "columnheader" }, "layer \\ head");
  const row = `${grid}-row`;
  const rows = range(layers).map((layer) => {
    const name = el("span", { class: "line", role: "rowheader" }, layer);
    return el("div", { class: row, role: "row" }, name, ...cells.slice(layer * heads, (layer + 1) * heads));
  });
  const style = { "--heads": String(heads), "--layers": String(layers) };
  return el("div", { class: grid, role: "grid", "aria-label": label, "aria-rowcount": layers + 1, "aria-colcount": heads + 1, style }, el("div", { class: row, role: "row" }, corner, ...names), ...rows);
}

/** Mark the cell of the selected head, and scroll it into view without scrolling the page. */
export function selectCell(cells: HTMLElement[], at: number, scroll?: HTMLElement): void {
  cells.forEach((cell, place) => {
    cell.setAttribute("aria-selected", String(place === at));
    cell.tabIndex = place === at ? 0 : -1;
  });
  if (!scroll) return;
  const row = cells[at].parentElement!;
  const [top, bottom] = [row.offsetTop - 30, row.offsetTop + row.offsetHeight + 4];
  if (top < scroll.scrollTop || bottom > scroll.scrollTop + scroll.clientHeight) scroll.scrollTop = (top + bottom - scroll.clientHeight) / 2;
}

interface Listening {
  pick: (place: number) => void; // a cell was clicked, or the arrow keys moved to it
  lines: (place: number) => string[]; // of the note at the pointer
  clicked?: (place: number) => void; // after the click that picked the cell
  enter?: () => void; // by the key, after the cell was picked
}

/** Follow pointer and keyboard over the cells, of which there are `columns` in a row; a disabled cell is not picked. */
export function listen(body: HTMLElement, cells: HTMLElement[], columns: number, { pick, lines, clicked, enter }: Listening): void {
  body.addEventListener("click", (event) => {
    const place = placeOf(event);
    if (place === null) return;
    pick(place);
    clicked?.(place);
  });
  body.addEventListener("keydown", (event) => {
    const place = placeOf(event);
    if (place === null) return;
    if (event.key === "Enter" && enter) {
      pick(place);
      enter();
      return event.preventDefault();
    }
    const next = arrowStep(event.key, place, cells.length, columns);
    if (next === place || cells[next].hasAttribute("disabled")) return;
    pick(next);
    cells[next].focus();
    event.preventDefault();
  });
  body.addEventListener("pointermove", (event) => {
    const place = placeOf(event);
    if (place === null || event.pointerType === "touch") return hideTip();
    tip(event.clientX, event.clientY, lines(place));
  });
  body.addEventListener("pointerleave", hideTip);
}

/** The cell that an event happened on, if any. */
function placeOf(event: Event): number | null {
  const target = (event.target as HTMLElement).closest?.<HTMLElement>("[data-place]");
  return target ? Number(target.dataset.place) : null;
}
