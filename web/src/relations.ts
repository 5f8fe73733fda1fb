// The selected word: where it looks most and who looks at it most, over all layers and heads.

import { any, type App, type Changed, type Panel, show, times } from "./app.ts";
import { arrow, name } from "./bidi.ts";
import { choice, el, keepFocus } from "./dom.ts";
import { type Ranked, type Relation, strongest } from "./ranking.ts";
import type { Direction } from "./reading.ts";
import { type Sheet, saveControls } from "./save.ts";
import { snapshot } from "./snapshot.ts";

export class RelationsPanel implements Panel {
  readonly element: HTMLElement;
  private readonly title = el("h2", { id: "h-word" });
  private readonly controls = el("div", { class: "controls" });
  private readonly body = el("div", { class: "columns" });
  private readonly note = el("p", { class: "caption" });
  private only = false; // of the selected head alone
  private special = false; // special tokens, punctuation and the word itself too
  private unfolded = false; // the relations of positional heads are shown

  constructor(private readonly app: App) {
    const save = saveControls(app, {
      what: "the relations",
      part: () => `relations-${this.word()}`,
      figure: () => snapshot(this.body, `${app.page.model.name}: ${this.title.textContent}`, this.note.textContent!),
      sheet: () => this.sheet(),
    });
    this.element = el(
      "section",
      { class: "panel", "aria-labelledby": "h-word" },
      el("div", { class: "panel-head" }, this.title, this.controls, save),
      this.note,
      this.body,
    );
    this.draw();
  }

  update(changed: Changed): void {
    if (any(changed, "text", "token", "other", "layer", "head", "direction")) this.draw();
  }

  // --- Model ---

  private word(): string {
    const { state, reading } = this.app;
    return state.token === null ? "" : reading.unitText[reading.unitOf[state.token]];
  }

  private ranked(unit: number, direction: Direction, most = 8): Ranked {
    const { reading, state } = this.app;
    const only = this.only ? state.layer * reading.heads + state.head : undefined;
    return strongest(reading, unit, direction, { only, special: this.special, most });
  }

  private sheet(): Sheet {
    const { state, reading } = this.app;
    const header = ["word", "direction", "other", "index of the other", "offset in words", "group", "layer", "head", "weight", "even", "usual", "lift", "contribution"];
    if (state.token === null) return { header, rows: [] };
    const unit = reading.unitOf[state.token];
    const rows = (["from", "to"] as const).flatMap((direction) =>
      Object.entries(this.ranked(unit, direction, 1000)).flatMap(([group, found]: [string, Relation[]]) =>
        found.map(({ other, layer, head, weight, even, usual, contribution }) => [
          this.word(), direction === "from" ? "looks at" : "is looked at by", reading.unitText[other], other, reading.wordsBetween(unit, other),
          group === "content" ? "content word" : group === "others" ? "other word" : "positional head", layer, head, weight, even, usual, usual ? weight / usual : null, contribution,
        ]),
      ),
    );
    return { header, rows };
  }

  // --- View ---

  private draw(): void {
    const { state, reading } = this.app;
    this.controls.replaceChildren();
    if (state.token === null) {
      this.title.textContent = "A word’s relations";
      this.note.textContent = "Click a word of the text to see where it looks and who looks at it.";
      this.body.replaceChildren();
      return;
    }
    const unit = reading.unitOf[state.token];
    this.title.replaceChildren("“", el("bdi", {}, reading.unitText[unit]), "”: its strongest relations");
    this.controls.append(this.headsChoice(), this.specialBox());
    this.note.textContent = explanation(reading.units[unit].length, reading.exact, reading.data.norms !== null);
    this.body.replaceChildren(this.list(unit, "from"), this.list(unit, "to"));
  }

  private list(unit: number, direction: Direction): HTMLElement {
    const { reading } = this.app;
    const known = reading.data.norms !== null;
    const { content, others, positional } = this.ranked(unit, direction);
    const group = (title: string, found: Relation[]) =>
      found.length > 0 && [el("h4", {}, title), el("ol", { class: "bars" }, ...found.map((relation) => item(this.app, unit, direction, relation)))];
    const free = [group("Content words", content), group("Other words", others)].flatMap((part) => part || []);
    return el(
      "div",
      {},
      el("h3", {}, direction === "from" ? "Where it looks" : "Who looks at it"),
      el("div", { class: known ? "bar-line bar-names norms" : "bar-line bar-names", "aria-hidden": "true" }, el("span", {}), el("span", {}), el("span", {}, "weight"), el("span", {}, "usual"), el("span", {}, "lift"), known && el("span", {}, "by norm"), el("span", {}, "head")),
      ...(free.length ? free : [el("p", { class: "quiet" }, reading.exact ? "Nothing else." : "Nothing among the relations kept.")]),
      positional.length > 0 && this.folded(group(`${positional.length} of heads that look at a fixed place`, positional) || []),
    );
  }

  /** Relations of positional heads, which say nothing of the word: folded away. */
  private folded([title, list]: HTMLElement[]): HTMLElement {
    const fold = el("details", {}, el("summary", {}, title.textContent), list);
    fold.open = this.unfolded;
    fold.addEventListener("toggle", () => {
      if (fold.open === this.unfolded) return;
      this.unfolded = fold.open;
      for (const other of this.body.querySelectorAll("details")) other.open = fold.open;
    });
    return fold;
  }

  // --- Controls ---

  private headsChoice(): HTMLElement {
    const { layer, head } = this.app.state;
    const names: ["all" | "one", string][] = [["all", "All heads"], ["one", `Head ${layer}.${head}`]];
    return choice("Which heads", names, this.only ? "one" : "all", (value) => {
      this.only = value === "one";
      keepFocus(() => this.draw());
    });
  }

  private specialBox(): HTMLElement {
    const box = el("input", { type: "checkbox", "data-focus": "special" });
    box.checked = this.special;
    box.addEventListener("change", () => {
      this.special = box.checked;
      keepFocus(() => this.draw());
    });
    return el("label", { class: "check" }, box, "also special tokens, punctuation, the word itself");
  }
}

/** A relation as a button: its partner, weight, even and usual share, lift and head. */
function item(app: App, unit: number, direction: Direction, relation: Relation): HTMLElement {
  const { reading } = app;
  const { other, layer, head, weight, even, usual } = relation;
  const position = reading.units[other][0];
  const [from, to] = direction === "from" ? [unit, other] : [other, unit];
  const [query, key] = [reading.unitText[from], reading.unitText[to]];
  const bound = !reading.exact && relation.pieces > 1 ? "≥ " : "";
  const button = {
    type: "button",
    class: relation.contribution === null ? "bar-line" : "bar-line norms",
    "aria-pressed": String(isPicked(app, direction, relation)),
    "data-focus": `relation ${direction} ${other} ${layer}.${head}`,
    "aria-label":
      `${name(query)} looks at ${name(key)}: ${bound && "at least "}${show(weight)} in head ${layer}.${head}; ` +
      `this head usually gives ${show(usual)} at that distance, an even spread ${show(even)}`,
    title: `${arrow(query, key)} · token ${position.toLocaleString("en")} · even ${show(even)} (${times(weight, even)})`,
    on: { click: () => app.set({ layer, head, direction, other: position, scope: "head" }) },
  };
  return el(
    "li",
    {},
    el(
      "button",
      button,
      el("span", { class: "bar-name" }, el("bdi", {}, reading.unitText[other]), " ", el("small", {}, where(reading.wordsBetween(unit, other)))),
      el(
        "span",
        { class: "bar-track" },
        el("span", { class: "bar", style: { width: `${Math.max(0.5, 100 * Math.min(1, weight))}%` } }),
        el("span", { class: "bar-usual", style: { width: `${100 * Math.min(1, usual, weight)}%` } }),
        el("span", { class: "bar-even", style: { left: `${100 * Math.min(1, even)}%` } }),
      ),
      el("span", { class: "bar-value" }, bound + show(weight)),
      el("span", { class: "bar-quiet" }, usual < 0.001 ? "<0.001" : usual.toFixed(3)),
      el("span", { class: "bar-times" }, times(weight, usual)),
      relation.contribution !== null && el("span", { class: "bar-quiet" }, show(relation.contribution)),
      el("span", { class: "bar-quiet" }, `${layer}.${head}`),
    ),
  );
}

/** Whether a relation is the one that the other panels show. */
function isPicked({ state, reading }: App, direction: Direction, { other, layer, head }: Relation): boolean {
  const shown = state.layer === layer && state.head === head && state.direction === direction;
  return shown && state.other !== null && reading.unitOf[state.other] === other;
}

/** How to read the bars. */
function explanation(pieces: number, exact: boolean, norms: boolean): string {
  return (
    "Bar: weight, in the head (layer.head) where it exceeds the usual most. Usual, the pale part: what this head gives to what stands as far away, " +
    "elsewhere in the text; lift is the ratio. Tick: an even share." +
    (norms ? " By norm: the key’s share of the length of what the head writes, weight times norm of its value (Kobayashi 2020)." : "") +
    (pieces > 1 ? ` This word has ${pieces} pieces: summed to a word, averaged from it.` : "") +
    (exact ? "" : " Long text: only the strongest keys of each token are kept; ≥: a word of several pieces gets at least this much.")
  );
}

/** How far away the partner is, in words. */
export function where(offset: number): string {
  if (offset === 0) return "";
  if (Math.abs(offset) === 1) return offset > 0 ? "next word" : "word before";
  return `${Math.abs(offset).toLocaleString("en")} ${offset > 0 ? "on" : "back"}`;
}
