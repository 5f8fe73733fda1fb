// The selected word: where it looks most and who looks at it most, over all layers and heads.

import { any, type App, type Changed, type Panel, show, times } from "./app.ts";
import { choice, el, keepFocus } from "./dom.ts";
import type { Direction, Relation } from "./reading.ts";

export class RelationsPanel implements Panel {
  readonly element: HTMLElement;
  private readonly title = el("h2", { id: "h-word" });
  private readonly controls = el("div", { class: "controls" });
  private readonly body = el("div", { class: "columns" });
  private readonly note = el("p", { class: "caption" });
  private only = false; // of the selected head alone
  private special = false; // special tokens, punctuation and the word itself too

  constructor(private readonly app: App) {
    this.element = el(
      "section",
      { class: "panel", "aria-labelledby": "h-word" },
      el("div", { class: "panel-head" }, this.title, this.controls),
      this.note,
      this.body,
    );
    this.draw();
  }

  update(changed: Changed): void {
    if (any(changed, "text", "token", "other", "layer", "head", "direction")) this.draw();
  }

  // --- View ---

  private draw(): void {
    const { state, reading } = this.app;
    this.controls.replaceChildren();
    if (state.token === null) {
      this.title.textContent = "A word’s relations";
      this.note.textContent = "Click a token of the text to see where it looks and who looks at it.";
      this.body.replaceChildren();
      return;
    }
    const unit = reading.unitOf[state.token];
    this.title.textContent = `“${reading.unitText[unit]}”: its strongest relations`;
    this.controls.append(this.headsChoice(), this.specialBox());
    this.note.textContent = explanation(reading.units[unit].length, reading.exact);
    this.body.replaceChildren(this.list(unit, "from"), this.list(unit, "to"));
  }

  private list(unit: number, direction: Direction): HTMLElement {
    const { reading, state } = this.app;
    const only: [number, number] | undefined = this.only ? [state.layer, state.head] : undefined;
    const found = reading.strongest(unit, direction, { only, special: this.special, most: 8 });
    return el(
      "div",
      {},
      el("h3", {}, direction === "from" ? "Where it looks" : "Who looks at it"),
      found.length
        ? el("ol", { class: "bars" }, ...found.map((relation) => item(this.app, unit, direction, relation)))
        : el("p", { class: "quiet" }, reading.exact ? "Nothing else." : "Nothing among the relations kept."),
    );
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
    return el("label", { class: "check" }, box, "also specials, marks, itself");
  }
}

/** A relation as a button: its partner, weight, even share, head and ratio. */
function item(app: App, unit: number, direction: Direction, relation: Relation): HTMLElement {
  const { reading } = app;
  const { other, layer, head, weight, even } = relation;
  const name = reading.unitText[other];
  const position = reading.units[other][0];
  const [query, key] = direction === "from" ? [reading.unitText[unit], name] : [name, reading.unitText[unit]];
  const button = {
    type: "button",
    "aria-pressed": String(isPicked(app, direction, relation)),
    "data-focus": `relation ${direction} ${other}`,
    "aria-label": `${query} looks at ${key}: ${show(weight)} in head ${layer}.${head}, an even spread would give ${show(even)}`,
    title: `${query} → ${key} · token ${position}`,
    on: { click: () => app.set({ layer, head, direction, other: position, scope: "head" }) },
  };
  return el(
    "li",
    {},
    el(
      "button",
      button,
      el("span", { class: "bar-name" }, name, " ", el("small", {}, where(reading.wordsBetween(unit, other)))),
      el(
        "span",
        { class: "bar-track" },
        el("span", { class: "bar", style: { width: `${Math.max(0.5, 100 * Math.min(1, weight))}%` } }),
        el("span", { class: "bar-even", style: { left: `${100 * Math.min(1, even)}%` } }),
      ),
      el("span", { class: "bar-value" }, show(weight)),
      el("span", { class: "bar-head" }, `${layer}.${head}`),
      el("span", { class: "bar-times" }, times(weight, even)),
    ),
  );
}

/** Whether a relation is the one that the other panels show. */
function isPicked({ state, reading }: App, direction: Direction, { other, layer, head }: Relation): boolean {
  const shown = state.layer === layer && state.head === head && state.direction === direction;
  return shown && state.other !== null && reading.unitOf[state.other] === other;
}

/** How to read the bars. */
function explanation(pieces: number, exact: boolean): string {
  return (
    `Bar: weight, in the head (layer.head) where it is largest. Tick: what an even spread would give; × is the ratio.` +
    (pieces > 1 ? ` This word has ${pieces} pieces: summed to a word, averaged from it.` : "") +
    (exact ? "" : " Long text: from the strongest relations of each token; a word of several pieces may get more than is shown.")
  );
}

/** How far away the partner is, in words. */
function where(offset: number): string {
  if (offset === 0) return "";
  if (Math.abs(offset) === 1) return offset > 0 ? "next word" : "word before";
  return `${Math.abs(offset).toLocaleString("en")} ${offset > 0 ? "on" : "back"}`;
}
