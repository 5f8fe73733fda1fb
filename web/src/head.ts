// One head, large: its map or its lines, with exact numbers under the pointer, and what it does in numbers.

import { type App, type Changed, type Panel } from "./app.ts";
import { choice, el } from "./dom.ts";
import { canDrawLines } from "./figure.ts";
import { headName } from "./grid.ts";
import { facts } from "./head-facts.ts";
import { LinesView } from "./head-lines.ts";
import { MapView } from "./head-map.ts";
import { legend } from "./legend.ts";
import { savePng, saveSvg } from "./save.ts";

export class HeadPanel implements Panel {
  readonly element: HTMLElement;
  readonly numbers: HTMLElement; // a panel of its own for the numbers, empty unless `apart`
  private readonly title = el("h2", { id: "h-head" });
  private readonly shapes = el("div", {});
  private readonly frame = el("div", { class: "figure" });
  private readonly facts = el("div", { class: "facts" });
  private readonly caption = el("p", { class: "caption" });
  private readonly scale = el("div", { class: "legend-line" });
  private readonly numbersTitle = el("h2", {});
  private readonly map: MapView;
  private readonly lines: LinesView;

  /** `apart`: the numbers go into a panel of their own, `numbers`, for the page to place. */
  constructor(
    private readonly app: App,
    apart: boolean,
  ) {
    this.map = new MapView(app);
    this.lines = new LinesView(app);
    this.element = el(
      "section",
      { class: "panel", "aria-labelledby": "h-head" },
      el("div", { class: "panel-head" }, this.title, this.shapes, saveControls(app)),
      this.caption,
      this.frame,
      el("div", { class: "under" }, this.scale),
      !apart && this.facts,
    );
    this.numbers = el("section", { class: "panel" }, this.numbersTitle, apart && this.facts);
    this.draw();
  }

  update(changed: Changed): void {
    if (changed.size === 1 && (changed.has("scope") || changed.has("grid"))) return;
    this.draw();
  }

  private draw(): void {
    const { reading, state, page } = this.app;
    const lines = state.shape === "lines" && canDrawLines(this.app);
    const name = `Head ${state.layer}.${state.head}`;
    this.shapes.replaceChildren();
    if (canDrawLines(this.app)) this.shapes.append(this.shapeChoice());
    this.frame.replaceChildren(lines ? this.lines.figure() : this.map.figure());
    this.title.textContent = name;
    this.numbersTitle.textContent = `${name} in numbers`;
    const place = state.layer * page.model.heads + state.head;
    this.caption.textContent = this.captionText(headName(reading.data.heads, place, reading.data.even.share));
    const thickness = "Thicker and stronger: a larger share. Below 2 % of the largest: not drawn.";
    this.scale.replaceChildren(
      lines
        ? el("p", { class: "caption" }, thickness)
        : legend(state.theme, this.app.high(state.layer, state.head), "share of attention"),
    );
    this.facts.replaceChildren(facts(this.app, place));
  }

  private shapeChoice(): HTMLElement {
    return choice("Drawn as", [["map", "Map"], ["lines", "Lines"]], this.app.state.shape, (shape) => this.app.set({ shape }));
  }

  private captionText(named: string | null): string {
    const { reading, state } = this.app;
    const block = reading.data.map.block;
    return (
      `Layer ${state.layer}, head ${state.head}. ` +
      (named ? `On this text it mostly looks at: ${named.replace(/ (\S+)$/, " ($1 of its attention)")}. ` : "") +
      (block > 1 ? `Each cell: the share of a block of ${block} tokens’ attention on another block; a row adds up to 1.` : "Each row adds up to 1.") +
      (state.hide ? " Special tokens and sinks are left out; the numbers stay as they are." : "")
    );
  }
}

function saveControls(app: App): HTMLElement {
  return el(
    "div",
    { class: "controls" },
    el("span", { class: "quiet" }, "Save figure"),
    el("button", { type: "button", class: "plain", on: { click: () => saveSvg(app) } }, "SVG"),
    el("button", { type: "button", class: "plain", on: { click: () => void savePng(app) } }, "PNG"),
  );
}
