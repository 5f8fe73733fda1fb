// The alignment as a table, and where the selected word looks most over all heads.

import { show, times } from "../app.ts";
import { name } from "../bidi.ts";
import { el } from "../dom.ts";
import { range } from "../reading.ts";
import { type Cell, saveControls, type Sheet } from "../save.ts";
import { snapshot } from "../snapshot.ts";
import type { Changed, Panel, SourceApp } from "./app.ts";

export class AlignmentTable implements Panel {
  readonly element: HTMLElement;
  private readonly body = el("div", { class: "scroll-x aligned" });

  constructor(private readonly app: SourceApp) {
    const save = saveControls(app, {
      what: "the table",
      part: () => "alignment-table",
      figure: () => snapshot(this.body, "Alignment", `${app.page.model.name} · ${this.note}`),
      sheet: () => this.sheet(),
    });
    this.element = el(
      "section",
      { class: "panel", "aria-labelledby": "h-aligned" },
      el("div", { class: "panel-head" }, el("h2", { id: "h-aligned" }, app.cross.source ? "Alignment" : "When each word is said"), save),
      el("p", { class: "caption" }, this.note),
      this.body,
    );
    this.draw();
  }

  update(changed: Changed): void {
    if (changed.has("word")) this.draw();
  }

  private get note(): string {
    const { aligning, named } = this.app.cross.data;
    const heads = aligning.map((place) => this.app.nameOf(place)).join(", ");
    if (!aligning.length) return "No head aligns.";
    const which = named ? `the heads that the checkpoint names (${heads})` : `${aligning.length === 1 ? "head" : "heads"} ${heads}, whose weights change most with the word that is written`;
    return this.app.cross.source ? `Each word beside the word of the source with the largest mean weight over ${which}.` : `Dynamic time warping over ${which}.`;
  }

  private draw(): void {
    const { app } = this;
    const { cross } = app;
    const head = cross.source ? ["word", "source", "weight", "even", ""] : ["word", "from", "to", "length"];
    const rows = this.rows().map(([word, ...cells]) => {
      const at = word as number;
      const pick = el("button", { type: "button", class: "word-button", "data-focus": `aligned ${at}`, on: { click: () => app.select(at) } }, el("bdi", {}, cross.words.units[at]));
      return el("tr", { class: at === app.state.word ? "own" : "" }, el("th", { scope: "row" }, pick), ...cells.map((cell) => el("td", {}, typeof cell === "string" ? el("bdi", {}, cell) : cell)));
    });
    this.body.replaceChildren(el("table", { class: cross.source ? "aligned-table" : "aligned-table times" }, el("thead", {}, el("tr", {}, ...head.map((text) => el("th", { scope: "col" }, text)))), el("tbody", {}, ...rows)));
  }

  /** The number of a word, and what stands beside it. */
  private rows(): Cell[][] {
    const { cross } = this.app;
    if (!cross.source) return cross.data.sound!.times.map(([start, end], word) => [word, start.toFixed(2), end.toFixed(2), `${(end - start).toFixed(2)} s`]);
    return cross.data.alignment.map(([unit, weight, even], word) => [word, cross.name(unit), show(weight), show(even), times(weight, even)]);
  }

  private sheet(): Sheet {
    const { cross } = this.app;
    if (!cross.source) return { header: ["index", "word", "start", "end"], rows: cross.data.sound!.times.map(([start, end], word): Cell[] => [word, cross.words.units[word], start, end]) };
    return { header: ["index", "word", "source index", "source", "weight", "even"], rows: cross.data.alignment.map(([unit, weight, even], word): Cell[] => [word, cross.words.units[word], unit, cross.name(unit), weight, even]) };
  }
}

const MOST = 10;

/** Where the selected word looks most: each part of the source in the head that gives it most. */
export class StrongestPanel implements Panel {
  readonly element: HTMLElement;
  private readonly title = el("h2", { id: "h-strongest" });
  private readonly note = el("p", { class: "caption" });
  private readonly body = el("div", {});

  constructor(private readonly app: SourceApp) {
    const save = saveControls(app, {
      what: "the strongest",
      part: () => "strongest",
      figure: () => snapshot(this.body, this.title.textContent!, `${app.page.model.name} · ${this.note.textContent}`),
      sheet: () => ({ header: ["word", "source", "layer", "head", "weight", "even"], rows: this.rows(Infinity).map(({ word, part, place, weight }) => [app.cross.words.units[word], app.cross.name(part), Math.floor(place / app.cross.data.heads), place % app.cross.data.heads, weight, app.cross.even(part)]) }),
    });
    this.element = el("section", { class: "panel", "aria-labelledby": "h-strongest" }, el("div", { class: "panel-head" }, this.title, save), this.note, this.body);
    this.draw();
  }

  update(changed: Changed): void {
    if (!changed.has("hover")) this.draw();
  }

  /** The pairs of the selected word or part, each in its strongest head. */
  private rows(most: number): { word: number; part: number; place: number; weight: number }[] {
    const { cross, state } = this.app;
    const pairs: [number, number][] = state.word !== null ? range(cross.parts).map((part) => [state.word!, part]) : state.part !== null ? range(cross.count).map((word) => [word, state.part!]) : [];
    const found = pairs.map(([word, part]) => {
      const place = cross.strongestHead(word, part);
      return { word, part, place, weight: cross.row(word, [place])[part] };
    });
    return found.sort((a, b) => b.weight - a.weight).slice(0, most);
  }

  private draw(): void {
    const { app } = this;
    const { cross, state } = app;
    const of = state.word !== null ? cross.words.units[state.word] : state.part !== null ? cross.name(state.part) : null;
    this.title.replaceChildren(...(of === null ? ["A word’s source"] : ["“", el("bdi", {}, of), state.word === null ? "”: which words look at it" : cross.source ? "”: what it looks at in the source" : "”: the moments it looks at most"]));
    this.note.textContent = of === null ? "Click a word." : "Bar: weight in the head (layer.head) that gives it most. Tick: an even share.";
    const items = this.rows(MOST).map(({ word, part, place, weight }) => {
      const even = cross.even(part);
      const shown = state.word !== null ? cross.name(part) : cross.words.units[word];
      const pressed = state.over === "head" && state.layer * cross.data.heads + state.head === place;
      const click = () => app.set({ layer: Math.floor(place / cross.data.heads), head: place % cross.data.heads, over: "head" });
      return el(
        "li",
        {},
        el(
          "button",
          { type: "button", class: "bar-line cross-bar", "aria-pressed": String(pressed), "data-focus": `strongest ${word} ${part}`, "aria-label": `${name(cross.words.units[word])} looks at ${name(cross.name(part))}: ${show(weight)} in head ${app.nameOf(place)}; an even share is ${show(even)}`, on: { click } },
          el("span", { class: "bar-name" }, el("bdi", {}, shown)),
          el("span", { class: "bar-track" }, el("span", { class: "bar", style: { width: `${Math.max(0.5, 100 * Math.min(1, weight))}%` } }), el("span", { class: "bar-even", style: { left: `${100 * Math.min(1, even)}%` } })),
          el("span", { class: "bar-value" }, show(weight)),
          el("span", { class: "bar-times" }, times(weight, even)),
          el("span", { class: "bar-quiet" }, app.nameOf(place)),
        ),
      );
    });
    this.body.replaceChildren(el("ol", { class: "bars" }, ...items));
  }
}
