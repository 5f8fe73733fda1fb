// One head, large: its map or its lines over each text, with exact numbers under the pointer.

import { type App, type Changed, type Panel } from "./app.ts";
import { choice, el, svg } from "./dom.ts";
import { canDrawLines, drawFigure, drawLines } from "./figure.ts";
import { kindOf } from "./grid.ts";
import { LinesView } from "./head-lines.ts";
import { MapView } from "./head-map.ts";
import { legend } from "./legend.ts";
import { range, type Reading } from "./reading.ts";
import { rolesLine } from "./roles.ts";
import { type Sheet, saveControls } from "./save.ts";
import { ZoomMap } from "./zoom-map.ts";

export class HeadPanel implements Panel {
  readonly element: HTMLElement;
  private readonly title = el("h2", { id: "h-head" });
  private readonly shapes = el("div", { class: "beside" });
  private readonly frames = el("div", { class: "figures" });
  private readonly caption = el("p", { class: "caption" });
  private readonly roles = el("div", {});
  private readonly scale = el("div", { class: "legend-line" });
  private readonly views: { map: MapView | ZoomMap; lines: LinesView; frame: HTMLElement }[];

  constructor(private readonly app: App) {
    this.views = app.readings.map((reading, text) => ({
      map: reading.exact ? new MapView(app, text) : new ZoomMap(app, text, (high) => this.legendOf(high)),
      lines: new LinesView(app, text),
      frame: el("div", { class: "figure" }),
    }));
    const several = app.readings.length > 1;
    this.frames.append(...this.views.map(({ frame }, text) => el("div", {}, several && el("h3", {}, `Text ${text + 1}`), frame)));
    const save = saveControls(app, {
      what: "the head",
      part: () => `head-${app.state.layer}.${app.state.head}`,
      figure: () => beside(app.readings.map((_, text) => this.saved(text))),
      sheet: () => this.sheet(),
    });
    this.element = el(
      "section",
      { class: several ? "panel wide" : "panel", "aria-labelledby": "h-head" },
      el("div", { class: "panel-head" }, this.title, this.shapes, save),
      this.caption,
      this.roles,
      this.frames,
      el("div", { class: "under" }, this.scale),
    );
    this.draw();
  }

  update(changed: Changed): void {
    if (changed.size === 1 && (changed.has("scope") || changed.has("grid"))) return;
    this.draw();
  }

  private get asLines(): boolean {
    return this.app.state.shape === "lines" && canDrawLines(this.app);
  }

  private saved(text: number): SVGSVGElement {
    const { map } = this.views[text];
    if (map instanceof ZoomMap) return map.saved();
    return this.asLines ? drawLines(this.app, true, text) : drawFigure(this.app, true, text).figure;
  }

  private sheet(): Sheet {
    const { state, readings } = this.app;
    if (readings.some((reading) => !reading.exact)) return this.cells();
    const cell = (reading: Reading, at: number) => reading.spelled(at);
    const rows = readings.flatMap((reading, text) => {
      const map = reading.map(state.layer, state.head, state.hide);
      const shown = reading.shown(state.hide);
      return shown.flatMap((row) =>
        shown
          .filter((column) => !reading.data.causal || column <= row)
          .map((column) => [text, row, cell(reading, row), column, cell(reading, column), map[row * reading.side + column]]),
      );
    });
    return { header: ["text", "query", "query token", "key", "key token", `weight in head ${state.layer}.${state.head}`], rows };
  }

  /** The cells in view of the maps of long texts. */
  private cells(): Sheet {
    const { layer, head } = this.app.state;
    const rows = this.views.flatMap(({ map }, text) => (map instanceof ZoomMap ? map.cells().map((cell) => [text, ...cell]) : []));
    return { header: ["text", "first query", "last query", "first key", "last key", `share of attention in head ${layer}.${head}`], rows };
  }

  private draw(): void {
    const { reading, state, page } = this.app;
    this.shapes.replaceChildren();
    if (canDrawLines(this.app)) this.shapes.append(this.shapeChoice());
    for (const { map, lines, frame } of this.views) {
      const figure = this.asLines ? lines.figure() : map.figure();
      if (frame.firstChild !== figure) frame.replaceChildren(figure);
    }
    this.title.textContent = `Head ${state.layer}.${state.head}`;
    const kind = kindOf(reading, state.layer * page.model.heads + state.head);
    this.caption.textContent = this.captionText(kind && `${kind.long} (${kind.share.toFixed(2)} of its attention)`);
    this.roles.replaceChildren(rolesLine(this.app, state.layer, state.head) ?? "");
    const thickness = "Thicker and stronger: a larger share. Below 2 % of the largest: not drawn.";
    if (reading.exact) this.scale.replaceChildren(
      this.asLines ? el("p", { class: "caption" }, thickness) : legend(state.theme, this.app.high(state.layer, state.head)),
    );
  }

  /** The scale of a long text's map, which changes with the part in view. */
  private legendOf(high: number): void {
    const key = `${this.app.state.theme} ${high}`;
    if (this.scale.dataset.scale === key) return;
    this.scale.dataset.scale = key;
    this.scale.replaceChildren(legend(this.app.state.theme, high));
  }

  private shapeChoice(): HTMLElement {
    return choice("Drawn as", [["map", "Map"], ["lines", "Lines"]], this.app.state.shape, (shape) => this.app.set({ shape }));
  }

  private captionText(named: string | null): string {
    const { reading, state } = this.app;
    const block = reading.data.map.block;
    return (
      `Layer ${state.layer}, head ${state.head}. ` +
      (named ? `On this text it mostly looks at: ${named}. ` : "") +
      (block > 1 ? "Each cell: the share of some tokens’ attention that falls on others; a row of the whole map adds up to 1." : `E${reading.whole.slice(1)}.`) +
      (state.hide ? " Special tokens and sinks are left out; the numbers stay as they are." : "")
    );
  }
}

/** Drawings side by side in one. */
function beside(figures: SVGSVGElement[]): SVGSVGElement {
  if (figures.length === 1) return figures[0];
  const boxes = figures.map((figure) => figure.viewBox.baseVal);
  const height = Math.max(...boxes.map((box) => box.height));
  const width = boxes.reduce((sum, box) => sum + box.width, 0);
  const starts = range(boxes.length).map((n) => boxes.slice(0, n).reduce((sum, box) => sum + box.width, 0));
  figures.forEach((figure, n) => {
    figure.setAttribute("x", String(starts[n]));
    figure.setAttribute("width", String(boxes[n].width));
    figure.setAttribute("height", String(boxes[n].height));
  });
  return svg("svg", { xmlns: "http://www.w3.org/2000/svg", viewBox: `0 0 ${width} ${height}` }, ...figures);
}
