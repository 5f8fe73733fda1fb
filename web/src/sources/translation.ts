// The source beside the target, with lines between the words that belong together.

import { colour, css, ink } from "../colour.ts";
import { el, svg } from "../dom.ts";
import { legend } from "../legend.ts";
import { type Cell, saveControls, type Sheet } from "../save.ts";
import { snapshot } from "../snapshot.ts";
import { hideTip, tip } from "../tip.ts";
import type { Changed, Panel, SourceApp } from "./app.ts";
import { overChoice, pairLines, pieceChoice } from "./controls.ts";
import { mark, type WordList, wordList } from "./words.ts";

const LADDER = 42; // words of the longer side that stand below one another
const WIDE = 440; // pixels
const FAINT = 0.04; // share of attention below which no line is drawn

export class TranslationPanel implements Panel {
  readonly element: HTMLElement;
  private readonly controls = el("div", { class: "controls", "data-unsaved": true });
  private readonly caption = el("p", { class: "caption", "aria-live": "polite" });
  private readonly lines = svg("svg", { class: "cross-lines", "aria-hidden": "true" });
  private readonly source: WordList;
  private readonly target: WordList;
  private readonly box: HTMLElement;

  constructor(private readonly app: SourceApp) {
    const { cross } = app;
    this.source = wordList(cross.source!, {
      label: "Words of the source",
      pick: (part) => app.selectPart(part),
      preview: (part) => app.preview(null, part),
      describe: (part) => [cross.name(part), ...this.strongestOf(null, part)],
      current: () => app.state.part,
    });
    this.target = wordList(cross.words, {
      label: "Words of the target",
      pick: (word) => app.select(word),
      preview: (word) => app.preview(word),
      describe: (word) => [cross.words.units[word], ...this.strongestOf(word, null)],
      current: () => app.state.word,
    });
    const side = (title: string, list: WordList) => el("div", { class: "cross-side" }, el("h3", {}, title), list.list);
    this.box = el("div", { class: "cross-box" }, this.lines, side("Source", this.source), el("div", { class: "cross-gutter" }), side("Target", this.target));
    this.tips(this.source, this.target);
    const save = saveControls(app, {
      what: "the alignment",
      part: () => `alignment-${app.state.word === null ? app.state.over : cross.words.units[app.state.word]}`,
      figure: () => snapshot(this.box, "Source and target", `${app.page.model.name} · ${this.caption.textContent}`, { theme: app.state.theme, high: 1 }),
      sheet: () => this.sheet(),
    });
    this.element = el(
      "section",
      { class: "panel cross-panel", "aria-labelledby": "h-cross" },
      el("div", { class: "panel-head" }, el("h2", { id: "h-cross" }, "Source and target"), this.controls, save),
      this.caption,
      this.box,
      el("div", { class: "under" }, el("div", { class: "legend-line" })),
    );
    this.draw();
  }

  update(changed: Changed): void {
    if (!changed.has("hover")) this.draw();
    else this.shade();
  }

  shown(): void {
    new ResizeObserver(() => this.lay()).observe(this.box);
    this.lay();
  }

  // --- View ---

  private draw(): void {
    const { app } = this;
    this.controls.replaceChildren(overChoice(app), ...[pieceChoice(app)].filter((one) => one !== null));
    this.element.querySelector(".legend-line")!.replaceChildren(legend(app.state.theme, 1));
    mark(this.source, app.state.part);
    mark(this.target, app.state.word);
    this.shade();
  }

  /** Words below one another where there is room for it, else as running text. */
  private lay(): void {
    const { source, target } = this;
    const short = Math.max(source.spans.length, target.spans.length) <= LADDER;
    this.box.classList.toggle("ladder", short && this.box.clientWidth >= WIDE);
    this.box.classList.toggle("stacked", this.box.clientWidth < WIDE);
    this.join();
  }

  private shade(): void {
    const { app } = this;
    const { cross } = app;
    const [word, part] = [app.word, app.part];
    const row = word === null ? null : cross.row(word, app.heads, app.piece);
    const column = part === null ? null : cross.column(part, app.heads);
    this.colour(this.source, row);
    this.colour(this.target, column);
    this.source.spans.forEach((span, at) => span.classList.toggle("partner", word !== null && at === cross.best(word, app.heads)));
    this.caption.textContent =
      (word !== null
        ? "Shaded: the share of this word’s attention on each word of the source"
        : part !== null
          ? "Shaded: the share of each word’s attention on this word of the source"
          : "Lines: the word of the source that each word looks at most") + `, ${app.where}.`;
    this.join();
  }

  private colour({ spans }: WordList, weights: Float32Array | null): void {
    spans.forEach((span, at) => {
      const rgb = weights && colour(this.app.state.theme, weights[at], 1);
      span.style.setProperty("background-color", rgb ? css(rgb) : "");
      span.style.setProperty("color", rgb ? ink(rgb) : "");
    });
  }

  /** Draw the lines: all of them thin, those of the chosen word as strong as its weights. */
  private join(): void {
    const { app, lines, box } = this;
    const { cross } = app;
    const frame = box.getBoundingClientRect();
    const [width, height] = [Math.max(1, box.clientWidth), Math.max(1, box.clientHeight)];
    for (const [key, value] of Object.entries({ viewBox: `0 0 ${width} ${height}`, width, height })) lines.setAttribute(key, String(value));
    const [word, part] = [app.word, app.part];
    const paths: SVGElement[] = [];
    if (box.classList.contains("ladder") || box.classList.contains("stacked"))
      cross.words.units.forEach((_, at) => paths.push(this.line(frame, cross.best(at, app.heads), at, null)));
    const weights = word !== null ? cross.row(word, app.heads, app.piece) : part !== null ? cross.column(part, app.heads) : null;
    weights?.forEach((weight, at) => {
      if (weight < FAINT) return;
      paths.push(word !== null ? this.line(frame, at, word, weight) : this.line(frame, part!, at, weight));
    });
    lines.replaceChildren(...paths);
  }

  private line(frame: DOMRect, part: number, word: number, weight: number | null): SVGElement {
    const [a, b] = [this.source.spans[part].getBoundingClientRect(), this.target.spans[word].getBoundingClientRect()];
    const stacked = this.box.classList.contains("stacked");
    const middle = (box: DOMRect) => (box.top + box.bottom) / 2 - frame.top;
    const centre = (box: DOMRect) => (box.left + box.right) / 2 - frame.left;
    const [x, y] = stacked ? [centre(a), a.bottom - frame.top + 1] : [a.right - frame.left + 3, middle(a)];
    const [u, v] = stacked ? [centre(b), b.top - frame.top - 1] : [b.left - frame.left - 3, middle(b)];
    const d = stacked
      ? `M${px(x)} ${px(y)}C${px(x)} ${px((y + v) / 2)} ${px(u)} ${px((y + v) / 2)} ${px(u)} ${px(v)}`
      : `M${px(x)} ${px(y)}C${px((x + u) / 2)} ${px(y)} ${px((x + u) / 2)} ${px(v)} ${px(u)} ${px(v)}`;
    const chosen = this.app.word !== null || this.app.part !== null;
    const look = weight === null ? { class: chosen ? "cross-line faint" : "cross-line" } : { class: "cross-line strong", "stroke-width": px(1 + 6 * weight), "stroke-opacity": px(0.35 + 0.65 * weight) };
    return svg("path", { d, fill: "none", ...look });
  }

  // --- Model ---

  private strongestOf(word: number | null, part: number | null): string[] {
    const { app } = this;
    if (word !== null) return pairLines(app, word, app.cross.best(word, app.heads)).slice(0, 2);
    const column = app.cross.column(part!, app.heads);
    return pairLines(app, column.indexOf(Math.max(...column)), part!).slice(0, 2);
  }

  private sheet(): Sheet {
    const { app } = this;
    const { cross } = app;
    const rows = cross.words.units.flatMap((text, word) => {
      const row = cross.row(word, app.heads);
      return Array.from(row, (weight, part): Cell[] => [word, text, part, cross.name(part), weight, cross.even(part), part === cross.best(word, app.heads) ? 1 : 0]);
    });
    return { header: ["index", "word", "source index", "source", `weight, ${app.where}`, "even", "strongest"], rows };
  }

  // --- Events ---

  private tips(source: WordList, target: WordList): void {
    for (const { list } of [source, target]) {
      list.addEventListener("pointermove", (event) => {
        const { app } = this;
        const found = (event.target as HTMLElement).closest<HTMLElement>("[data-at]");
        if (!found || event.pointerType === "touch") return hideTip();
        const at = Number(found.dataset.at);
        tip(event.clientX, event.clientY, list === source.list ? this.overSource(at) : pairLines(app, at, app.cross.best(at, app.heads)));
      });
      list.addEventListener("pointerleave", hideTip);
    }
  }

  private overSource(part: number): string[] {
    const column = this.app.cross.column(part, this.app.heads);
    return pairLines(this.app, column.indexOf(Math.max(...column)), part);
  }
}

const px = (value: number): string => value.toFixed(1);
