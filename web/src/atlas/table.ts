// Heads and roles as a table that is filtered and sorted.

import { choice, el, keepFocus } from "../dom.ts";
import { saveControls, type Sheet } from "../save.ts";
import { any, type App, type Changed, type Column, type Panel } from "./app.ts";
import { box, canvas, clip, line, title, toneOf, write } from "./draw.ts";
import { type Row, rowsOf } from "./rows.ts";
import { count, isShare, plural, show, showAs, signed } from "./text.ts";

interface Heading {
  column: Column;
  name: string;
  about: string;
  value: (row: Row) => string;
}

export class TablePanel implements Panel {
  readonly element: HTMLElement;
  private readonly controls = el("div", { class: "controls" });
  private readonly caption = el("p", { class: "caption", "aria-live": "polite" });
  private readonly table = el("table", { class: "head-table" });
  private lines: [Row, HTMLElement][] = [];

  constructor(private readonly app: App) {
    const save = saveControls(app, { what: "the table", part: () => `atlas-table-${app.state.rows}`, figure: () => tableFigure(app), sheet: () => tableSheet(app) });
    this.element = el(
      "section",
      { class: "panel", "aria-labelledby": "h-table" },
      el("div", { class: "panel-head" }, el("h2", { id: "h-table" }, "Table"), this.controls, save),
      this.caption,
      el("div", { class: "table-scroll", role: "region", "aria-labelledby": "h-table", tabindex: 0 }, this.table),
    );
    this.draw();
  }

  update(changed: Changed): void {
    if (any(changed, "rows", "find", "sort", "down", "role") || (any(changed, "measure") && this.app.state.rows === "heads")) this.draw();
    else if (any(changed, "head")) this.select();
  }

  private draw(): void {
    const { app } = this;
    const { shown, of } = rowsOf(app);
    const headings = headingsOf(app);
    if (!this.controls.children.length || this.controls.dataset.rows !== app.state.rows) this.controlled();
    const search = this.controls.querySelector<HTMLInputElement>("input")!;
    if (search.value !== app.state.find) search.value = app.state.find;
    this.caption.textContent = captionOf(app, shown.length, of);
    this.lines = shown.map((row) => [row, this.line(row, headings)]);
    const empty = el("tr", {}, el("td", { colspan: headings.length, class: "quiet nothing" }, of ? "Nothing matches." : "No role found in any head."));
    this.table.replaceChildren(
      el("thead", {}, el("tr", {}, ...headings.map((heading) => this.heading(heading)))),
      el("tbody", {}, ...(this.lines.length ? this.lines.map(([, element]) => element) : [empty])),
    );
    this.select();
  }

  private select(): void {
    for (const [row, element] of this.lines) {
      if (row.place === this.app.state.head) element.setAttribute("aria-current", "true");
      else element.removeAttribute("aria-current");
    }
  }

  private heading({ column, name, about }: Heading): HTMLElement {
    const { app } = this;
    const { sort, down } = app.state;
    const own = sort === column;
    const click = () => app.set({ sort: column, down: own ? !down : column !== "head" && column !== "role" });
    return el(
      "th",
      { scope: "col", class: column, "aria-sort": own ? (down ? "descending" : "ascending") : "none" },
      el("button", { type: "button", title: about, "data-focus": `sort ${column}`, on: { click } }, name, el("span", { class: "arrow", "aria-hidden": "true" }, own ? (down ? "▼" : "▲") : "")),
    );
  }

  private line(row: Row, headings: Heading[]): HTMLElement {
    const { app } = this;
    const open = () => app.set({ head: row.place });
    const cells = headings.map(({ column, value }) => {
      if (column === "head")
        return el("th", { scope: "row" }, el("button", { type: "button", class: "word-button", "data-focus": `row ${row.place} ${row.measure}` }, value(row)));
      if (column === "role") return el("td", { class: "role" }, row.role ? el("bdi", {}, row.role) : el("span", { class: "quiet" }, "no role found"));
      if (column === "score") return el("td", { class: "score" }, isShare(app.atlas.data.measures[row.measure]) && bar(row), el("span", {}, value(row)));
      return el("td", { class: column }, value(row));
    });
    return el("tr", { on: { click: open } }, ...cells);
  }

  private controlled(): void {
    const { app } = this;
    const search = el("input", { type: "search", placeholder: "Filter: a role, 17.4, layer 17.", "aria-label": "Filter the table", "data-focus": "find" });
    search.value = app.state.find;
    search.addEventListener("input", () => app.set({ find: search.value }));
    const kinds = choice("Rows", [["roles", "Roles found"], ["heads", "Every head"]], app.state.rows, (rows) => app.set({ rows, sort: "score", down: true }));
    this.controls.dataset.rows = app.state.rows;
    keepFocus(() => this.controls.replaceChildren(kinds, search));
  }
}

/** A score between 0 and 1 as a bar, its baseline as a tick. */
function bar({ score, baseline }: Row): HTMLElement {
  const part = (value: number) => `${100 * Math.min(1, Math.max(0, Number.isFinite(value) ? value : 0))}%`;
  return el(
    "span",
    { class: "bar-track", "aria-hidden": "true" },
    el("span", { class: "bar", style: { width: part(score) } }),
    Number.isFinite(baseline) && el("span", { class: "bar-even", style: { left: part(baseline) } }),
  );
}

function headingsOf(app: App): Heading[] {
  const { state, atlas } = app;
  const roles = state.rows === "roles";
  const some = (has: (measure: (typeof atlas.data.measures)[number]) => unknown) => (roles ? atlas.data.measures.some(has) : has(app.measure));
  const as = (row: Row, value: number) => showAs(atlas.data.measures[row.measure], value);
  const found: (Heading | false)[] = [
    { column: "head", name: "Head", about: "Layer and head, from 0", value: ({ place }) => atlas.name(place) },
    { column: "role", name: roles ? "Role" : "Roles", about: "What the head was found to do", value: ({ role }) => role },
    { column: "score", name: roles ? "Held-out score" : "Score", about: roles ? "Over the texts that did not choose the head" : `${app.measure.label}, over all texts`, value: (row) => as(row, row.score) },
    { column: "low", name: "95 % interval", about: "Bootstrap over texts; sorted by its lower end", value: (row) => `${as(row, row.low)} to ${as(row, row.high)}` },
    roles && { column: "chosen", name: "Chosen half", about: "The score over the texts that chose the head", value: (row) => as(row, row.chosen) },
    { column: "baseline", name: "Baseline", about: "What an even spread, or the best fixed offset, would reach", value: (row) => as(row, row.baseline) },
    Boolean(some(({ control }) => control)) && { column: "control", name: "Shuffled", about: "The same head on shuffled text", value: (row) => as(row, row.control) },
    { column: "n", name: "n", about: "Cases counted", value: ({ n }) => count(n) },
    atlas.data.sink !== null && { column: "sink", name: "Sink", about: "Share of the head’s attention on the sink", value: ({ sink }) => show(sink) },
    atlas.data.other !== null && { column: "other", name: "The other", about: "The score in the other atlas over all texts, and the change", value: (row) => `${as(row, row.other)} (${signed(row.change, atlas.data.measures[row.measure])})` },
  ];
  return found.filter((heading): heading is Heading => heading !== false);
}

function captionOf({ state, measure }: App, shown: number, of: number): string {
  const what =
    state.rows === "roles"
      ? `${plural(of, "role")} that hold${of === 1 ? "s" : ""} on held-out texts.`
      : `Every head by ${measure.label}, over all texts.`;
  const bars = state.rows === "roles" || isShare(measure) ? " Bar: score from 0 to 1; tick: baseline." : "";
  const found = shown === of ? "" : ` ${count(shown)} of ${count(of)} shown.`;
  return `${what}${found}${bars} Press a heading to sort, a row to open its head.`;
}

// --- Files ---

const MOST = 60; // rows of a figure

function tableFigure(app: App): SVGSVGElement {
  const tone = toneOf(app);
  const headings = headingsOf(app);
  const { shown } = rowsOf(app);
  const rows = shown.slice(0, MOST);
  const widths: number[] = headings.map(({ column }) => (column === "role" ? 190 : column === "low" || column === "other" ? 122 : 92));
  const left = headings.map((_, i) => 16 + widths.slice(0, i).reduce((a, b) => a + b, 0));
  const width = left.at(-1)! + widths.at(-1)! + 16;
  const figure = canvas(app, width, 84 + rows.length * 20 + (shown.length > MOST ? 24 : 8), true);
  figure.append(title(app, app.state.rows === "roles" ? "Roles of heads" : `Heads by ${app.measure.label}`));
  headings.forEach(({ name }, i) => figure.append(write(left[i], 70, name, tone.faint, { "font-size": 11.5 })));
  figure.append(line(`M16 76H${width - 16}`, tone.rule));
  rows.forEach((row, at) => {
    const y = 92 + at * 20;
    if (at % 2) figure.append(box(12, y - 14, width - 24, 20, tone.soft));
    headings.forEach(({ column, value }, i) => figure.append(write(left[i], y, clip(value(row), column === "role" ? 28 : 22), tone.ink)));
  });
  if (shown.length > MOST) figure.append(write(16, 98 + rows.length * 20, `and ${count(shown.length - MOST)} more rows`, tone.faint));
  return figure;
}

function tableSheet(app: App): Sheet {
  const { atlas, state } = app;
  const header = ["layer", "head", state.rows === "roles" ? "role" : "roles", "measure", "unit", "score", "low", "high", "chosen half", "baseline", "shuffled text", "n", "texts", "sink", ...(atlas.data.other ? ["other", "change"] : [])];
  return {
    header,
    rows: rowsOf(app).shown.map((row) => {
      const { place, role, measure, score, low, high, chosen, baseline, control, n, texts, sink, other, change } = row;
      const { id, unit } = atlas.data.measures[measure];
      const place2 = [Math.floor(place / atlas.heads), place % atlas.heads];
      return [...place2, role, id, unit, score, low, high, chosen, baseline, control, n, texts, sink, ...(atlas.data.other ? [other, change] : [])];
    }),
  };
}
