// All heads, layers down and heads across, each coloured by a measure.

import { css, ink } from "../colour.ts";
import { arrowStep, choice, el } from "../dom.ts";
import { range } from "../reading.ts";
import { hideTip, tip } from "../tip.ts";
import { any, type App, type Changed, type Panel } from "./app.ts";
import { canvas } from "./draw.ts";
import { gridFigure, gridRows } from "./grid-figure.ts";
import { LEGEND_HEIGHT, legend } from "./legend.ts";
import { measureMenu } from "./menu.ts";
import { saveBar } from "./save-bar.ts";
import type { Scale } from "./scale.ts";
import { about, show, showAs, signed } from "./text.ts";

export class GridPanel implements Panel {
  readonly element: HTMLElement;
  private readonly cells: HTMLElement[];
  private readonly caption = el("p", { class: "caption" });
  private readonly controls = el("div", { class: "controls" });
  private readonly scale = el("div", { class: "atlas-legend" });
  private readonly roles = el("div", { class: "role-keys", role: "group", "aria-label": "Roles: press one to see its heads" });
  private readonly scroll: HTMLElement;
  private width = 440; // of the legend

  constructor(
    private readonly app: App,
    private readonly enter: () => void, // shows the head's panel
  ) {
    const { layers, heads } = app.atlas;
    this.cells = range(app.atlas.count).map((place) =>
      el("button", { type: "button", class: "head-cell", role: "gridcell", tabindex: -1, "data-place": place }),
    );
    const body = frame(layers, heads, this.cells);
    this.listen(body);
    this.scroll = el("div", { class: "grid-scroll" }, body);
    const saving = { name: "the grid", file: () => [app.measure.id], figure: () => gridFigure(app), rows: () => gridRows(app) };
    this.element = el(
      "section",
      { class: "panel", "aria-labelledby": "h-grid" },
      el("div", { class: "panel-head" }, el("h2", { id: "h-grid" }, "All heads"), saveBar(app, saving)),
      this.controls,
      this.caption,
      this.scroll,
      this.scale,
      this.roles,
    );
    this.draw();
    this.select();
  }

  update(changed: Changed): void {
    if (any(changed, "measure", "shown", "role", "letters", "sinks", "theme")) this.draw();
    if (any(changed, "head")) this.select();
  }

  shown(): void {
    new ResizeObserver(() => {
      const width = Math.min(440, Math.round(this.element.clientWidth - 64));
      if (width === this.width || width < 200) return;
      this.width = width;
      this.explain(this.app.coloured().scale);
    }).observe(this.element);
  }

  /** Scroll the selected head into view, without scrolling the page. */
  private scrollTo(): void {
    const { scroll } = this;
    const row = this.cells[this.app.state.head].parentElement!;
    const [top, bottom] = [row.offsetTop - 30, row.offsetTop + row.offsetHeight + 4];
    if (top < scroll.scrollTop || bottom > scroll.scrollTop + scroll.clientHeight)
      scroll.scrollTop = (top + bottom - scroll.clientHeight) / 2;
  }

  // --- View ---

  private draw(): void {
    const { app, cells } = this;
    const { atlas, state } = app;
    const { values, scale } = app.coloured();
    cells.forEach((cell, place) => {
      const known = Number.isFinite(values[place]);
      const tint = scale.tint(values[place]);
      cell.style.setProperty("background", known ? css(tint) : "");
      cell.style.setProperty("color", known ? ink(tint) : "");
      cell.classList.toggle("unknown", !known);
      cell.classList.toggle("sink", state.sinks && atlas.isSink(place));
      cell.classList.toggle("dim", state.role !== "" && !atlas.rolesOf(place, state.shown).some(({ role }) => role === state.role));
      cell.textContent = app.letters(place);
      cell.setAttribute("aria-label", lines(app, place, values[place]).join(", "));
    });
    this.controls.replaceChildren(...this.controlled());
    this.caption.textContent = about(app.measure);
    this.roles.replaceChildren(...this.keys());
    this.explain(scale);
  }

  private explain(scale: Scale): void {
    const width = this.width;
    const figure = canvas(this.app, width, LEGEND_HEIGHT);
    figure.setAttribute("role", "img");
    figure.setAttribute("aria-label", `Colour scale from ${show(scale.low)} to ${show(scale.high)}`);
    figure.append(legend(this.app, width));
    this.scale.replaceChildren(figure);
  }

  private select(): void {
    this.cells.forEach((cell, place) => {
      const chosen = place === this.app.state.head;
      cell.setAttribute("aria-selected", String(chosen));
      cell.tabIndex = chosen ? 0 : -1;
    });
    this.scrollTo();
  }

  private controlled(): HTMLElement[] {
    const { app } = this;
    const { state, atlas } = app;
    const box = (name: string, key: "letters" | "sinks", checked: boolean) => {
      const input = el("input", { type: "checkbox", "data-focus": key });
      input.checked = checked;
      input.addEventListener("change", () => app.set({ [key]: input.checked }));
      return el("label", { class: "check" }, input, name);
    };
    const found = [measureMenu(app, "Colour by", state.measure, (measure) => app.set({ measure }))];
    if (atlas.data.other)
      found.push(
        choice("Which model", [["here", "This model"], ["other", "The other"], ["difference", "Difference"]], state.shown, (shown) => app.set({ shown })),
      );
    if (atlas.roles.length) found.push(box("Roles", "letters", state.letters));
    if (atlas.data.sink !== null) found.push(box("Sinks", "sinks", state.sinks));
    return found;
  }

  /** The letters of the roles; pressing one lets its heads stand out. */
  private keys(): HTMLElement[] {
    const { app } = this;
    const { atlas, state } = app;
    return atlas.roles.map((role) =>
      el(
        "button",
        {
          type: "button",
          class: "role-key",
          title: role,
          "aria-pressed": String(state.role === role),
          "data-focus": `role ${role}`,
          on: { click: () => app.set({ role: state.role === role ? "" : role }) },
        },
        el("span", { class: "role-letter" }, atlas.letters.get(role)),
        el("bdi", {}, role),
        el("span", { class: "quiet" }, atlas.holders(role)),
      ),
    );
  }

  // --- Events ---

  private listen(body: HTMLElement): void {
    const { app } = this;
    body.addEventListener("click", (event) => {
      const place = placeOf(event);
      if (place === null) return;
      app.set({ head: place });
      app.say(lines(app, place, app.coloured().values[place]).join(", "));
      if (matchMedia("(max-width: 900px)").matches) this.enter();
    });
    body.addEventListener("keydown", (event) => {
      const place = placeOf(event);
      if (place === null) return;
      if (event.key === "Enter") {
        app.set({ head: place });
        this.enter();
        return event.preventDefault();
      }
      const next = arrowStep(event.key, place, this.cells.length, app.atlas.heads);
      if (next === place) return;
      app.set({ head: next });
      this.cells[next].focus();
      event.preventDefault();
    });
    body.addEventListener("pointermove", (event) => {
      const place = placeOf(event);
      if (place === null || event.pointerType === "touch") return hideTip();
      tip(event.clientX, event.clientY, lines(app, place, app.coloured().values[place]));
    });
    body.addEventListener("pointerleave", hideTip);
  }
}

function frame(layers: number, heads: number, cells: HTMLElement[]): HTMLElement {
  const names = range(heads).map((head) => el("span", { class: "column", role: "columnheader" }, head));
  const corner = el("span", { class: "corner", role: "columnheader" }, "layer \\ head");
  const rows = range(layers).map((layer) => {
    const name = el("span", { class: "line", role: "rowheader" }, layer);
    return el("div", { class: "head-row", role: "row" }, name, ...cells.slice(layer * heads, (layer + 1) * heads));
  });
  const grid = el(
    "div",
    { class: "head-grid", role: "grid", "aria-label": "Heads, one row per layer. Arrow keys move, Enter opens a head.", "aria-rowcount": layers + 1, "aria-colcount": heads + 1 },
    el("div", { class: "head-row", role: "row" }, corner, ...names),
    ...rows,
  );
  grid.style.setProperty("--heads", String(heads));
  grid.style.setProperty("--layers", String(layers));
  return grid;
}

function placeOf(event: Event): number | null {
  const target = (event.target as HTMLElement).closest?.<HTMLElement>("[data-place]");
  return target ? Number(target.dataset.place) : null;
}

/** A head in words: its name, its score, its roles, its sink. */
function lines(app: App, place: number, value: number): string[] {
  const { atlas, measure, state } = app;
  const roles = atlas.rolesOf(place, state.shown).map(({ role }) => role);
  const sink = atlas.sinkMeasure();
  return [
    `head ${atlas.name(place)}`,
    `${measure.label} ${state.shown === "difference" ? signed(value) : showAs(measure, value)}`,
    roles.length ? roles.join(", ") : "no role found",
    ...(sink && sink !== measure ? [`${sink.label} ${show(sink.total.score.values[place])}`] : []),
  ];
}
