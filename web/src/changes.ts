// What a word of both texts looks at in one and in the other, by head.

import type { App } from "./app.ts";
import { show } from "./app.ts";
import { type Change, changes, contrasts, gap } from "./compare.ts";
import { el } from "./dom.ts";
import type { Reading } from "./reading.ts";

/** Tables for a word that stands in both texts; of long texts, whose weights are not all kept, none. */
export function changesTables(app: App, unit: number, word: string): HTMLElement[] {
  const { pairs } = app.page.comparison!;
  const at = pairs.findIndex((pair) => pair[app.state.text] === unit);
  if (at < 0 || !app.readings.every((reading) => reading.exact)) return [];
  const [first, second]: Reading[] = app.readings;
  const shared = pairs.some(([a, b], n) => n !== at && first.content.has(a) && second.content.has(b));
  const changed = changes(app.readings, pairs, at);
  const different = contrasts(app.readings, pairs[at]);
  return [
    el(
      "div",
      {},
      el("h3", {}, `What changed most for “${word}”`),
      el("p", { class: "caption" }, "Its attention to content words of both texts, by head: what differs by 0.05 and by three times the head’s usual change."),
      changed.length ? table(app, pairs[at], changed, "same") : el("p", { class: "quiet" }, shared ? "Nothing beyond the noise." : "The texts share no other content word."),
      el("h3", { class: "next" }, "The same head, different words"),
      el("p", { class: "caption" }, "The content word that each head takes most from, beyond its usual at that distance, where the texts differ."),
      different.length ? table(app, pairs[at], different, "different") : el("p", { class: "quiet" }, "No head."),
    ),
  ];
}

function table(app: App, pair: [number, number], found: Change[], kind: "same" | "different"): HTMLElement {
  const follow = ({ keys, layer, head }: Change, text: number) => {
    const reading = app.readings[text];
    const target = { text, token: reading.units[pair[text]][0], other: reading.units[keys[text]][0] };
    const click = () => app.set({ ...target, layer, head, scope: "head", direction: "from" });
    const title = `Show head ${layer}.${head}, text ${text + 1}`;
    return el("button", { type: "button", class: "word-button", title, "data-focus": `${kind} ${text} ${keys[text]} ${layer}.${head}`, on: { click } }, el("bdi", {}, reading.unitText[keys[text]]));
  };
  const sign = (change: Change) => {
    const by = gap(change.weights);
    return el("td", { class: "change" }, `${by > 0 ? "+" : "−"}${Math.abs(by).toFixed(3)}`);
  };
  const same = kind === "same";
  const names = same ? ["looks at", "text 1", "text 2", "change", "head"] : ["text 1", "", "text 2", "", "head"];
  const cells = (change: Change) => {
    const [first, second] = change.weights.map((weight) => el("td", {}, show(weight)));
    const head = el("td", {}, `${change.layer}.${change.head}`);
    return same
      ? [el("th", { scope: "row" }, follow(change, app.state.text)), first, second, sign(change), head]
      : [el("th", { scope: "row" }, follow(change, 0)), first, el("th", { scope: "row" }, follow(change, 1)), second, head];
  };
  return el(
    "div",
    { class: "scroll-x" },
    el(
      "table",
      {},
      el("thead", {}, el("tr", {}, ...names.map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, ...found.map((change) => el("tr", {}, ...cells(change)))),
    ),
  );
}
