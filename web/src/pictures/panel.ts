// The picture under its patches: a click selects a patch, and the others are lit by how much it looks at them, or they
// at it.

import { type App, type Changed, type Panel, percent, show, times, type Veil } from "../app.ts";
import { colour, css, ink } from "../colour.ts";
import { arrowStep, choice, el, svg } from "../dom.ts";
import { legend } from "../legend.ts";
import { range } from "../reading.ts";
import { type Cell, saveControls, type Sheet } from "../save.ts";
import { snapshot } from "../snapshot.ts";
import { hideTip, tip } from "../tip.ts";
import { headsName, type Picture } from "./data.ts";
import { drawPicture } from "./draw.ts";

const FINE = 720; // pixels of the drawing's width

interface View {
  picture: Picture;
  canvas: HTMLCanvasElement;
  grid: SVGSVGElement;
  frame: HTMLElement;
  chips: HTMLElement[];
}

export class PicturePanel implements Panel {
  readonly element: HTMLElement;
  private readonly controls = el("div", { class: "controls", "data-unsaved": true });
  private readonly caption = el("p", { class: "caption", "aria-live": "polite" });
  private readonly scale = el("div", { class: "legend-line" });
  private readonly views: View[];
  private readonly box: HTMLElement;

  constructor(
    private readonly app: App,
    private readonly pictures: Picture[],
  ) {
    this.views = pictures.map((picture, text) => this.view(picture, text));
    const several = pictures.length > 1;
    this.box = el("div", { class: several ? "pictures several" : "pictures" }, ...this.views.map(({ frame, chips }, text) => el("div", {}, several && el("h3", {}, `Picture ${text + 1}`), chips.length > 0 && el("div", { class: "chips picture-chips", role: "group", "aria-label": "Special tokens" }, ...chips), frame)));
    const save = saveControls(app, {
      what: "the picture",
      part: () => (app.state.token === null ? "picture" : `picture-${app.reading.spelled(app.state.token)}`),
      figure: () => snapshot(this.box, "Where it looks in the picture", `${app.page.model.name} · ${this.caption.textContent}`, this.row(app.state.text) && app.state.veil === "colours" ? { theme: app.state.theme, high: this.high } : undefined),
      sheet: () => this.sheet(),
    });
    this.element = el(
      "section",
      { class: "panel", "aria-labelledby": "h-picture" },
      el("div", { class: "panel-head" }, el("h2", { id: "h-picture" }, "The picture"), this.controls, save),
      this.caption,
      this.box,
      el("div", { class: "under" }, this.scale),
    );
    this.draw();
  }

  update(changed: Changed): void {
    if (changed.size === 1 && (changed.has("grid") || changed.has("shape") || changed.has("own"))) return;
    this.draw();
  }

  // --- View ---

  private view(picture: Picture, text: number): View {
    const { app } = this;
    const canvas = el("canvas", { "aria-hidden": "true" });
    const { rows, columns, before } = picture.data;
    const grid = svg("svg", { class: "patches", viewBox: `0 0 ${columns} ${rows}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    const frame = el("div", { class: "picture", role: "application", tabindex: 0, "data-focus": `picture ${text}`, "aria-label": "The picture in patches. Arrow keys move from patch to patch." }, canvas, grid);
    const chips = range(before).map((token) =>
      el("button", { type: "button", class: "chip", "data-focus": `special ${text} ${token}`, on: { click: () => this.pick(text, token) } }, el("span", { class: "chip-name" }, app.readings[text].spelled(token)), " ", el("small", {})),
    );
    const view = { picture, canvas, grid, frame, chips };
    this.listen(view, text);
    return view;
  }

  /** The attention of the selected token over the parts of a picture. */
  private row(text: number): Float32Array | null {
    const { token } = this.app.state;
    return token === null ? null : this.pictures[text].row(this.pictures[text].partOf(token), this.app.state);
  }

  private get high(): number {
    const row = this.row(this.app.state.text);
    return row ? this.pictures[this.app.state.text].high(row) : 1;
  }

  private draw(): void {
    const { app } = this;
    const { state } = app;
    this.buttons();
    this.views.forEach((view, text) => this.drawView(view, text));
    this.scale.replaceChildren(...(state.token === null || state.veil === "none" ? [] : [this.legend()]));
    const { join } = this.pictures[state.text].data;
    const blocks = join > 1 ? ` A cell is ${join} × ${join} patches: the mean of its own attention, the sum of what it gets.` : "";
    this.caption.textContent =
      state.token === null
        ? "The picture as the model reads it. Click a patch, or a special token."
        : (state.direction === "from"
            ? `Where ${app.reading.spelled(state.token)} looks: the share of its attention on each patch, ${headsName(state)}.`
            : `Who looks at ${app.reading.spelled(state.token)}: the share of each patch’s attention on it, ${headsName(state)}.`) + blocks;
  }

  private drawView({ picture, canvas, grid, chips }: View, text: number): void {
    const { state } = this.app;
    const row = this.row(text);
    drawPicture(canvas, picture, FINE, row, state.veil, state.theme);
    const { rows, columns, join } = picture.data;
    const lines = [...range(picture.cellColumns - 1).map((j) => `M${(j + 1) * join} 0V${rows}`), ...range(picture.cellRows - 1).map((i) => `M0 ${(i + 1) * join}H${columns}`)];
    const cell = state.token === null ? null : picture.cellOf(picture.partOf(state.token));
    const mark = cell && { x: cell[1] * join, y: cell[0] * join, width: Math.min(join, columns - cell[1] * join), height: Math.min(join, rows - cell[0] * join) };
    grid.replaceChildren(
      svg("path", { d: lines.join(""), class: "patch-lines", fill: "none" }),
      ...(mark ? [svg("rect", { ...mark, class: "patch-under", fill: "none" }), svg("rect", { ...mark, class: "patch-mark", fill: "none" })] : []),
    );
    const high = row && picture.high(row);
    chips.forEach((chip, token) => {
      chip.setAttribute("aria-pressed", String(token === state.token && text === state.text));
      chip.lastElementChild!.textContent = row ? percent(row[token]) : "";
      const rgb = row && high ? colour(state.theme, row[token], Math.max(high, row[token])) : null;
      chip.style.setProperty("background-color", rgb ? css(rgb) : "");
      chip.style.setProperty("color", rgb ? ink(rgb) : "");
    });
  }

  /** What the colours, or the light, mean. */
  private legend(): HTMLElement {
    const { theme, veil } = this.app.state;
    const scale = legend(theme, this.high);
    if (veil === "light") scale.querySelector<HTMLElement>(".legend-bar")!.style.setProperty("background", "linear-gradient(90deg, #1c1c20, #ffffff)");
    return scale;
  }

  private buttons(): void {
    const { app } = this;
    const { state } = app;
    this.controls.replaceChildren(
      choice("How weights are shown", [["light", "Light"], ["colours", "Colours"], ["none", "Off"]] as [Veil, string][], state.veil, (veil) => app.set({ veil })),
      choice("Direction", [["from", "Where it looks"], ["to", "Who looks at it"]], state.direction, (direction) => app.set({ direction })),
      choice("Over which heads", [["head", `Head ${state.layer}.${state.head}`], ["layer", `Layer ${state.layer}, mean`], ["all", "All, strongest"]], state.scope, (scope) => app.set({ scope })),
    );
  }

  // --- Model ---

  /** Lines about a part of a picture, for the tip and for screen readers. */
  private describe(text: number, part: number): string[] {
    const picture = this.pictures[text];
    const reading = this.app.readings[text];
    const { join } = picture.data;
    const first = reading.spelled(picture.tokenOf(part)) + (join > 1 && picture.cellOf(part) ? ` and the ${join} × ${join} patches from there` : "");
    const row = this.row(text);
    if (!row) return [first];
    const key = this.app.state.direction === "from" ? part : picture.partOf(this.app.state.token!);
    const even = picture.size(key) / picture.length;
    return [first, `${show(row[part])}  (even ${show(even)}, ${times(row[part], even)})`];
  }

  private sheet(): Sheet {
    const rows = this.pictures.flatMap((picture, text) => {
      const row = this.row(text);
      return range(picture.parts).map((part): Cell[] => {
        const [i, j] = picture.cellOf(part) ?? [null, null];
        return [text, this.app.readings[text].spelled(picture.tokenOf(part)), i, j, row ? row[part] : null, picture.size(part) / picture.length];
      });
    });
    return { header: ["picture", "token", "row", "column", this.caption.textContent!, "even"], rows };
  }

  // --- Events ---

  private pick(text: number, token: number): void {
    const { state } = this.app;
    const same = state.token === token && state.text === text;
    this.app.set({ text, token: same ? null : token, other: null });
  }

  private listen({ picture, frame }: View, text: number): void {
    const partAt = (event: MouseEvent): number | null => {
      const box = frame.getBoundingClientRect();
      const { rows, columns, join } = picture.data;
      const i = Math.floor((((event.clientY - box.top) / box.height) * rows) / join);
      const j = Math.floor((((event.clientX - box.left) / box.width) * columns) / join);
      return i >= 0 && j >= 0 && i < picture.cellRows && j < picture.cellColumns ? picture.partAt(i, j) : null;
    };
    frame.addEventListener("click", (event) => {
      const part = partAt(event);
      if (part !== null) this.pick(text, picture.tokenOf(part));
    });
    frame.addEventListener("pointermove", (event) => {
      const part = partAt(event);
      if (part === null || event.pointerType === "touch") return hideTip();
      tip(event.clientX, event.clientY, this.describe(text, part));
    });
    frame.addEventListener("pointerleave", hideTip);
    frame.addEventListener("keydown", (event) => {
      const { before } = picture.data;
      const { token } = this.app.state;
      if (event.key === "Escape") return this.app.set({ token: null, other: null });
      const at = token === null ? -1 : picture.partOf(token) - before;
      const next = at < 0 ? 0 : arrowStep(event.key, at, picture.parts - before, picture.cellColumns);
      if (!/^(Arrow|Home|End)/.test(event.key)) return;
      event.preventDefault();
      if (next !== at) this.app.set({ text, token: picture.tokenOf(before + next), other: null });
      this.app.say(this.describe(text, before + next).join(", "));
    });
  }
}

