// The strongest examples of a head in context, with the weights of the chosen one around it.

import { css, shade } from "../colour.ts";
import { el } from "../dom.ts";
import type { Cell } from "../export.ts";
import { any, type App, type Changed, type Panel } from "./app.ts";
import { clip } from "./draw.ts";
import { examplesFigure, mapFigure } from "./example-figure.ts";
import type { Example } from "./model.ts";
import { saveBar } from "./save-bar.ts";
import { count, show } from "./text.ts";

export class ExamplesPanel implements Panel {
  readonly element: HTMLElement;
  private readonly title = el("h2", { id: "h-examples" });
  private readonly body = el("div", {});
  private readonly sample = el("span", { class: "as-key" }, "this one");

  constructor(private readonly app: App) {
    const saving = {
      name: "the examples",
      file: () => ["head", app.atlas.name(app.state.head), "examples"],
      figure: () => examplesFigure(app),
      rows: () => exampleRows(app),
    };
    this.element = el(
      "section",
      { class: "panel", "aria-labelledby": "h-examples" },
      el("div", { class: "panel-head" }, this.title, saveBar(app, saving)),
      el("p", { class: "caption" }, "Where its weight was largest, with sinks left out: ", el("span", { class: "as-query" }, "this token"), " looked at ", this.sample, ". The number is the weight."),
      this.body,
    );
    this.draw();
  }

  update(changed: Changed): void {
    if (any(changed, "head", "example", "theme")) this.draw();
  }

  private draw(): void {
    const { app } = this;
    const examples = app.atlas.examples(app.state.head);
    this.sample.style.setProperty("--strength", strength(app, 0.8));
    this.title.textContent = `Head ${app.atlas.name(app.state.head)}: strongest examples`;
    if (!examples.length) {
      this.body.replaceChildren(el("p", { class: "quiet" }, "No examples of this head were kept."));
      return;
    }
    const drawable = examples.some(({ map }) => map);
    const chosen = examples[app.state.example];
    const list = el("ol", { class: drawable ? "examples" : "examples wide" }, ...examples.map((example, at) => this.item(example, at, drawable)));
    this.body.replaceChildren(el("div", { class: drawable ? "example-columns" : "" }, list, drawable && this.map(chosen)));
  }

  private item(example: Example, at: number, drawable: boolean): HTMLElement {
    const { app } = this;
    const said = `“${word(example, example.query)}” looked at “${word(example, example.key)}”, weight ${show(example.weight)}, text ${example.text}`;
    const inside = [el("span", { class: "example-weight" }, show(example.weight)), el("span", { class: "example-text", dir: "auto" }, ...context(app, example))];
    const pressed = { type: "button", "aria-pressed": String(at === app.state.example), "aria-label": said, "data-focus": `example ${at}`, on: { click: () => app.set({ example: at }) } };
    return el("li", {}, drawable ? el("button", pressed, ...inside) : el("div", { class: "example" }, ...inside));
  }

  private map(example: Example): HTMLElement {
    const { query, key, map, text, weight } = example;
    const caption = `Text ${count(text)}: ${word(example, query)} → ${word(example, key)}, ${show(weight)}.`;
    if (!map) return el("figure", { class: "example-map" }, el("figcaption", { class: "caption" }, caption, " The weights around this example were not kept: those of the strongest are."));
    const figure = mapFigure(this.app, example, false);
    figure.setAttribute("role", "img");
    figure.setAttribute("aria-label", `Weights among the ${example.tokens.length} tokens around this example`);
    return el("figure", { class: "example-map" }, el("figcaption", { class: "caption" }, caption, " Rows look, columns are looked at; colour: share of attention, square root."), figure);
  }
}

export const word = (example: Example, at: number): string => clip(example.tokens[at].trim() || "␣", 24);

/** The background of a key: stronger for a larger weight, and light enough for the text on it. */
const strength = (app: App, weight: number): string => css(shade(app.state.theme, 0.1 + 0.28 * weight));

/** The tokens of an example as running text, query and key marked. */
function context(app: App, { tokens, query, key, weight }: Example): (Node | string)[] {
  return tokens.map((written, at) => {
    const token = at ? written : written.trimStart();
    if (at !== query && at !== key) return token;
    const [, space, rest] = /^(\s*)([\s\S]*)$/.exec(token)!;
    const kind = at === query && at === key ? "as-query as-key" : at === query ? "as-query" : "as-key";
    const mark = el("mark", { class: kind }, rest || "␣");
    if (at === key) mark.style.setProperty("--strength", strength(app, weight));
    return el("span", {}, space, mark);
  });
}

function exampleRows(app: App): Cell[][] {
  const rows: Cell[][] = [["head", "text", "weight", "query", "key", "offset", "context"]];
  for (const example of app.atlas.examples(app.state.head))
    rows.push([app.atlas.name(app.state.head), example.text, example.weight, word(example, example.query), word(example, example.key), example.key - example.query, example.tokens.join("")]);
  return rows;
}
