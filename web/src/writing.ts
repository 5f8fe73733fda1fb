// What a decoder wrote, or expected at each token: step through the tokens; candidates as bars, and the logit lens.
// The data is that of src/limelight/microscope/page/pack_writing.py.

import { any, type App, type Changed, type Panel, show } from "./app.ts";
import { colour, css, ink } from "./colour.ts";
import type { Tensor } from "./data.ts";
import { arrowStep, el } from "./dom.ts";
import { lensTable, signs } from "./lens.ts";
import { range, sliceText } from "./reading.ts";

export interface WritingOf<Numbers> {
  first: number; // position of the first predicted token
  written: number; // position from which on the model wrote
  vocabulary: number;
  texts: string[];
  probability: number[]; // -1: the token that would come next
  rank: number[];
  entropy: number[];
  candidates: Numbers; // (P, K), numbers in texts
  shares: Numbers;
  lens: { top: Numbers; shares: Numbers; probability: Numbers; rank: Numbers } | null;
}

export type Writing = WritingOf<Tensor>;

const SHOWN = 400; // tokens of the strip at once

export class WritingPanel implements Panel {
  readonly element: HTMLElement;
  private readonly head = el("div", { class: "panel-head" });
  private readonly strip = el("div", { class: "tokens written", role: "listbox", "aria-label": "Predicted tokens. Arrow keys step." });
  private readonly sentence = el("p", { class: "caption", "aria-live": "polite" });
  private readonly bars = el("div", { class: "candidates" });
  private readonly lens = el("div", { class: "lens" });
  private readonly pieces: string[][];
  private step = 0;

  constructor(
    private readonly app: App,
    private readonly writings: (Writing | null)[],
  ) {
    this.pieces = app.page.readings.map(({ text, tokens }) => {
      const slice = sliceText(text);
      return tokens.text.map((name, i) => (tokens.end[i] > tokens.start[i] ? slice(tokens.start[i], tokens.end[i]) : name));
    });
    this.element = el(
      "section",
      { class: "panel writing", "aria-labelledby": "h-writing", on: { keydown: (event: KeyboardEvent) => this.press(event) } },
      this.head,
      this.strip,
      this.sentence,
      el("div", { class: "writing-parts" }, this.bars, this.lens),
    );
    this.strip.addEventListener("click", (event) => {
      const at = (event.target as HTMLElement).closest<HTMLElement>("[data-step]");
      if (at) this.go(Number(at.dataset.step), true);
    });
    this.lens.addEventListener("click", (event) => {
      const at = (event.target as HTMLElement).closest<HTMLElement>("[data-step]");
      if (at) this.go(Number(at.dataset.step));
    });
    this.draw();
  }

  update(changed: Changed): void {
    if (any(changed, "token", "text", "theme")) this.draw();
  }

  /** Begin at the first token that the model wrote. */
  shown(): void {
    const { writing } = this;
    if (writing && writing.written < this.app.reading.length && !location.hash) this.go(writing.written - writing.first);
    else this.draw(); // the table of the lens has a width now
  }

  private get writing(): Writing | null {
    return this.writings[this.app.state.text];
  }

  // --- View ---

  private draw(): void {
    const { writing, element } = this;
    element.hidden = writing === null;
    if (!writing) return;
    const { token } = this.app.state;
    const count = writing.rank.length;
    // What follows a token was predicted while it was read.
    if (token !== null) this.step = Math.min(Math.max(token + 1 - writing.first, 0), count - 1);
    this.step = Math.min(this.step, count - 1);
    this.drawHead(writing, count);
    this.drawStrip(writing, count);
    this.sentence.replaceChildren(...this.describe(writing));
    this.bars.replaceChildren(el("h3", {}, "Candidates"), this.candidates(writing));
    this.lens.replaceChildren();
    if (writing.lens) this.drawLens(writing);
  }

  private drawHead(writing: Writing, count: number): void {
    const title = writing.written < this.app.reading.length ? "What the model wrote" : "What the model expected";
    const button = (name: string, label: string, by: number) =>
      el(
        "button",
        { type: "button", class: "plain", disabled: this.step + by < 0 || this.step + by >= count, "data-focus": `writing ${label}`, "aria-label": label, on: { click: () => this.go(this.step + by) } },
        name,
      );
    this.head.replaceChildren(
      el("h2", { id: "h-writing" }, title),
      el(
        "div",
        { class: "controls" },
        button("‹", "Previous token", -1),
        el("span", { class: "writing-count" }, `${(this.step + 1).toLocaleString("en")} of ${count.toLocaleString("en")}`),
        button("›", "Next token", 1),
      ),
    );
  }

  private drawStrip(writing: Writing, count: number): void {
    const { theme } = this.app.state;
    const from = Math.max(0, Math.min(this.step - SHOWN / 2, count - SHOWN));
    const to = Math.min(count, from + SHOWN);
    this.strip.replaceChildren(
      from > 0 ? "… " : "",
      ...range(to - from).map((i) => {
        const step = from + i;
        const rgb = colour(theme, Math.max(0, writing.probability[step]), 1);
        const own = writing.rank[step] > 0;
        return el(
          "span",
          {
            class: `token${step === this.step ? " selected" : ""}`,
            role: "option",
            tabindex: step === this.step ? 0 : -1,
            "aria-selected": String(step === this.step),
            "data-step": step,
            "data-focus": `step ${step}`,
            style: own ? { "background-color": css(rgb), color: ink(rgb) } : {},
          },
          signs(this.name(writing, step)),
        );
      }).flatMap((span) => [span, " "]),
      to < count ? "…" : "",
    );
    const chosen = this.strip.querySelector<HTMLElement>(".selected");
    if (chosen) this.strip.scrollTop = chosen.offsetTop - this.strip.offsetTop - this.strip.clientHeight / 2;
  }

  private describe(writing: Writing): (Node | string)[] {
    const { step } = this;
    const position = writing.first + step;
    const { text, tokens } = this.app.reading.data;
    const before = sliceText(text)(tokens.start[Math.max(0, position - 5)], Math.max(...tokens.end.slice(0, position)));
    const vocabulary = writing.vocabulary.toLocaleString("en");
    const spread = ` Entropy ${writing.entropy[step].toFixed(2)} nats, ${Math.log(writing.vocabulary).toFixed(1)} if all were as likely.`;
    const after = `After “${position > 5 ? "…" : ""}${signs(before)}” `;
    if (!writing.rank[step]) return [after, `these would come next, of ${vocabulary} tokens.`, spread];
    const wrote = position >= writing.written ? "the model wrote " : "the text has ";
    return [
      after,
      wrote,
      el("b", {}, `“${signs(this.name(writing, step))}”`),
      ": probability ",
      el("b", {}, show(writing.probability[step])),
      `, rank ${writing.rank[step].toLocaleString("en")} of ${vocabulary}.`,
      spread,
    ];
  }

  private candidates(writing: Writing): HTMLElement {
    const { candidates, shares } = writing;
    const width = candidates.shape[1];
    const own = writing.rank[this.step];
    return el(
      "ol",
      { class: "bars" },
      ...range(width).map((place) => {
        const at = this.step * width + place;
        const share = shares.values[at];
        const here = place + 1 === own;
        return el(
          "li",
          { class: here ? "own" : "" },
          el("span", { class: "bar-name" }, signs(writing.texts[candidates.values[at]])),
          el("span", { class: "bar-track" }, el("span", { class: "bar", style: { width: `${Math.max(0.5, 100 * share)}%` } })),
          el("span", { class: "bar-value" }, show(share)),
        );
      }),
    );
  }

  private drawLens(writing: Writing): void {
    const { theme } = this.app.state;
    const count = writing.rank.length;
    const columns = Math.max(1, Math.min(count, 11, Math.floor(((this.lens.clientWidth || 700) - 410) / 76) + 1));
    const from = Math.max(0, Math.min(this.step - Math.floor(columns / 2), count - columns));
    const names = range(columns).map((i) => signs(this.name(writing, from + i)));
    this.lens.append(...lensTable(writing, names, from, this.step, theme));
  }

  /** The token at a step; of the one that would come next, a question mark. */
  private name(writing: Writing, step: number): string {
    return writing.rank[step] ? this.pieces[this.app.state.text][writing.first + step] : "?";
  }

  // --- Events ---

  private press(event: KeyboardEvent): void {
    const { writing } = this;
    if (!writing || !["ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) return;
    this.go(arrowStep(event.key, this.step, writing.rank.length, 1), this.strip.contains(document.activeElement));
    event.preventDefault();
  }

  /** Select the token that was read when the token of a step was predicted, so that every panel shows what it looked at. */
  private go(step: number, focus = false): void {
    const { writing, app } = this;
    if (!writing || step < 0 || step >= writing.rank.length) return;
    app.set({ token: writing.first + step - 1, other: null, direction: "from" });
    if (focus) this.strip.querySelector<HTMLElement>(".selected")?.focus();
  }
}
