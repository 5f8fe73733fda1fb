// The strongest examples of a head in context, and all its weights in a short text.

import { css, shade } from "../colour.ts";
import { el } from "../dom.ts";
import { type Cell, saveControls, type Sheet } from "../save.ts";
import { any, type App, type Changed, type Panel } from "./app.ts";
import { clip } from "./draw.ts";
import { examplesFigure, pictureFigure } from "./example-figure.ts";
import type { Example } from "./model.ts";
import { show } from "./text.ts";

export class ExamplesPanel implements Panel {
  readonly element: HTMLElement;
  private readonly title = el("h2", { id: "h-examples" });
  private readonly body = el("div", {});

  constructor(private readonly app: App) {
    const save = saveControls(app, {
      what: "the examples",
      part: () => `atlas-head-${app.atlas.name(app.state.head)}-examples`,
      figure: () => examplesFigure(app),
      sheet: () => examplesSheet(app),
    });
    this.element = el(
      "section",
      { class: "panel", "aria-labelledby": "h-examples" },
      el("div", { class: "panel-head" }, this.title, save),
      this.body,
    );
    this.draw();
  }

  update(changed: Changed): void {
    if (any(changed, "head", "theme")) this.draw();
  }

  private draw(): void {
    const { app } = this;
    const { atlas, state } = app;
    const examples = atlas.examples(state.head);
    this.title.textContent = `Head ${atlas.name(state.head)} in texts`;
    const list = examples.length
      ? el("ol", { class: "examples" }, ...examples.map((example) => item(app, example)))
      : el("p", { class: "quiet" }, "No examples of this head were kept.");
    const picture = atlas.data.picture;
    this.body.className = picture ? "example-columns" : "";
    this.body.replaceChildren(
      el("div", {}, el("h3", {}, "Where its weight was largest"), examples.length ? explained(app) : "", list),
      picture ? pictured(app, picture.tokens.length) : "",
    );
  }
}

function explained(app: App): HTMLElement {
  const key = el("mark", { class: "as-key" }, "this one");
  key.style.setProperty("--strength", strength(app, 0.8));
  const query = el("mark", { class: "as-query" }, "This token");
  return el("p", { class: "caption" }, query, " looks at ", key, "; the number is the weight. The strongest of every text; sinks are left out.");
}

function item(app: App, example: Example): HTMLElement {
  return el(
    "li",
    {},
    el("span", { class: "example-weight" }, show(example.weight)),
    el("span", { class: "example-text", dir: "auto" }, ...context(app, example)),
  );
}

/** The tokens of an example as running text, query and key marked. */
function context(app: App, { tokens, query, key, weight }: Example): (Node | string)[] {
  return tokens.map((written, at) => {
    const token = (at ? written : written.trimStart()).replace(/\s+/gu, " ");
    if (at !== query && at !== key) return token;
    const [, space, rest] = /^(\s*)([\s\S]*)$/u.exec(token)!;
    const role = at === query && at === key ? "query and key" : at === query ? "query" : "key";
    const kind = at === query && at === key ? "as-query as-key" : at === query ? "as-query" : "as-key";
    const mark = el("mark", { class: kind, title: role }, rest || "␣");
    if (at === key) mark.style.setProperty("--strength", strength(app, weight));
    return el("span", {}, space, mark);
  });
}

/** The background of a key: stronger for a larger weight, and light enough for the text on it. */
const strength = (app: App, weight: number): string => css(shade(app.state.theme, 0.1 + 0.28 * weight));

function pictured(app: App, tokens: number): HTMLElement {
  const figure = pictureFigure(app);
  figure.setAttribute("role", "img");
  figure.setAttribute("aria-label", `All weights of the head among the first ${tokens} tokens of the corpus`);
  const caption = el("p", { class: "caption" }, "Rows look, columns are looked at; colour: share of attention, square root, from 0 to 1.");
  return el("figure", { class: "example-map" }, el("h3", {}, `Its weights on the first ${tokens} tokens`), caption, figure);
}

export const word = (token: string): string => clip(token.trim() || "␣", 24);

function examplesSheet(app: App): Sheet {
  const name = app.atlas.name(app.state.head);
  const rows = app.atlas.examples(app.state.head).map(({ text, weight, tokens, query, key }): Cell[] => [
    name, text, weight, word(tokens[query]), word(tokens[key]), key - query, tokens.join(""),
  ]);
  return { header: ["head", "text", "weight", "query", "key", "offset in the context", "context"], rows };
}
