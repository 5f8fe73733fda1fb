// The sentence on top, made from the data: what the selected word takes from its partner, beside an even share.

import { any, type App, type Panel, percent } from "./app.ts";
import { el } from "./dom.ts";
import { leading, type Relation, strongest } from "./ranking.ts";
import type { Reading } from "./reading.ts";
import { where } from "./relations.ts";

export function leadPanel(app: App): Panel {
  const said = el("p", { class: "said", "aria-live": "polite" });
  const more = el("p", { class: "quiet more" });
  const warnings = app.page.warnings.map((warning) => el("p", { class: "warning", role: "note" }, warning));
  const element = el("section", { class: "lead", "aria-label": "In a sentence" }, said, more, ...warnings);

  const draw = () => {
    const { state, reading } = app;
    const word = (unit: number) => el("bdi", { class: "strong" }, reading.unitText[unit]);
    const found = state.token === null ? null : relationOf(app);
    if (state.token === null || !found) {
      said.replaceChildren("What each token looked at while the model read this text. ", el("b", {}, "Click a word."));
      more.textContent = state.token === null ? "" : "For this word no relation to another word is kept.";
      return;
    }
    const unit = reading.unitOf[state.token];
    const [query, key] = state.direction === "from" ? [unit, found.other] : [found.other, unit];
    const same = reading.unitText[query].toLowerCase() === reading.unitText[key].toLowerCase();
    const at = (other: number | null) => other !== null && same && ` (${where(reading.wordsBetween(unit, other))})`;
    const atLeast = !reading.exact && found.pieces > 1 ? "at least " : "";
    said.replaceChildren(
      ...parts([word(query), at(query === unit ? null : found.other), ` takes ${atLeast}`, el("b", {}, percent(found.weight)), " of its attention from ", word(key), at(key === unit ? null : found.other),
      " in ", showButton(app, found), `, where an even share would be ${percent(found.even)}.`]),
    );
    more.replaceChildren(
      `Elsewhere in this text this head gives ${percent(found.usual)} to what stands as far away. `,
      ...otherText(app, unit, found),
      el("b", {}, "Click any word"), " to follow it, and any relation, head or cell to see it everywhere. ",
      "A weight says where a head took its values from; it is not an explanation.",
    );
  };

  draw();
  return {
    element,
    update(changed) {
      if (any(changed, "text", "token", "other", "layer", "head", "direction")) draw();
    },
  };
}

const parts = (of: (Node | string | false)[]): (Node | string)[] => of.filter((part) => part !== false);

/** The head of a relation, as a button that selects it. */
function showButton(app: App, { other, layer, head }: Relation): HTMLElement {
  const token = app.reading.units[other][0];
  const click = () => app.set({ layer, head, other: token, scope: "head" });
  return el("button", { type: "button", class: "word-button", "data-focus": "lead", title: "Show this head", on: { click } }, `head ${layer}.${head}`);
}

/** The relation of the selected pair in the selected head; without a partner, the leading one of the word. */
function relationOf({ state, reading }: App): Relation | null {
  const unit = reading.unitOf[state.token!];
  if (state.other !== null) {
    const other = reading.unitOf[state.other];
    const only = state.layer * reading.heads + state.head;
    const all = strongest(reading, unit, state.direction, { only, special: true, most: Infinity });
    const found = [...all.content, ...all.others].find((relation) => relation.other === other);
    if (found) return found;
  }
  return leading(reading, unit, state.direction);
}

/** What the same head does for the same word in the other text. */
function otherText(app: App, unit: number, { layer, head }: Relation): (Node | string)[] {
  if (app.readings.length < 2 || app.state.direction !== "from") return [];
  const text = 1 - app.state.text;
  const partner = app.partner(unit, text);
  if (partner === null) return [];
  const reading: Reading = app.readings[text];
  const { content, others } = strongest(reading, partner, "from", { only: layer * reading.heads + head, most: 1 });
  const found = content[0] ?? others[0];
  if (!found) return [];
  const word = el("bdi", { class: "strong" }, reading.unitText[found.other]);
  return [`In text ${text + 1} the same head takes ${percent(found.weight)} from `, word, ". "];
}
