// All heads, layers down and heads across, each coloured by a measure.

import { css, ink } from "../colour.ts";
import { choice, el } from "../dom.ts";
import { gridOf, listen, selectCell } from "../head-cells.ts";
import { range } from "../reading.ts";
import { saveControls } from "../save.ts";
import { any, type App, type Changed, type Panel } from "./app.ts";
import { canvas } from "./draw.ts";
import { gridFigure, gridSheet } from "./grid-figure.ts";
import { LEGEND_HEIGHT, legend } from "./legend.ts";
import { measureMenu } from "./menu.ts";
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
    enter: () => void, // shows the head's panel
  ) {
    const { layers, heads } = app.atlas;
    this.cells = range(app.atlas.count).map((place) =>
      el("button", { type: "button", class: "head-cell", role: "gridcell", tabindex: -1, "data-place": place }),
    );
    const body = gridOf(layers, heads, this.cells, { grid: "head", label: "Heads, one row per layer. Arrow keys move, Enter opens a head." });
    const described = (place: number) => lines(app, place, app.coloured().values[place]);
    listen(body, this.cells, heads, {
      pick: (place) => app.set({ head: place }),
      lines: described,
      clicked: (place) => {
        app.say(described(place).join(", "));
        if (matchMedia("(max-width: 900px)").matches) enter();
      },
      enter,
    });
    this.scroll = el("div", { class: "grid-scroll" }, body);
    const save = saveControls(app, { what: "the grid", part: () => `atlas-${app.measure.id}`, figure: () => gridFigure(app), sheet: () => gridSheet(app) });
    this.element = el(
      "section",
      { class: "panel", "aria-labelledby": "h-grid" },
      el("div", { class: "panel-head" }, el("h2", { id: "h-grid" }, "All heads"), save),
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
    selectCell(this.cells, this.app.state.head, this.scroll);
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
