// The text itself: click a token, and the others are shaded by how much it looks at them, or they at it.
// Two texts that are compared stand below one another, and the same word of both is followed at once.

import { type App, type Changed, type Panel } from "./app.ts";
import { colour, css, ink } from "./colour.ts";
import { arrowStep, choice, el } from "./dom.ts";
import { legend } from "./legend.ts";
import { range } from "./reading.ts";
import { describe, followed, highOf, isBlank, sentence, valuesOf } from "./text-model.ts";
import { type Line, lineLength, lineOf, reveal, tokenOf } from "./text-view.ts";
import { hideTip, tip } from "./tip.ts";

const TOGETHER = 400; // tokens of two texts that still fit below one another

export class TextPanel implements Panel {
  readonly element: HTMLElement;
  private readonly tabs = el("div", {});
  private readonly controls = el("div", { class: "controls" });
  private readonly caption = el("p", { class: "caption", "aria-live": "polite" });
  private readonly scale = el("div", { class: "legend-line" });
  private readonly box = el("div", { class: "texts" });
  private readonly together: boolean;
  private lines: Line[] = [];

  constructor(private readonly app: App) {
    const several = app.readings.length > 1;
    const title = el("h2", { id: "h-text" }, several ? "The texts" : "The text");
    this.together = several && app.readings.reduce((sum, reading) => sum + reading.length, 0) <= TOGETHER;
    this.element = el(
      "section",
      { class: "panel", "aria-labelledby": "h-text" },
      el("div", { class: "panel-head" }, title, this.tabs, this.controls),
      this.box,
      el("div", { class: "under" }, this.caption, this.scale),
    );
    this.build();
    this.draw();
  }

  update(changed: Changed): void {
    if (changed.has("text") && !this.together) this.build();
    this.draw();
    if (changed.has("token")) this.shown();
  }

  /** Scroll to the selected token. */
  shown(): void {
    const { text, token } = this.app.state;
    const line = this.lines.find((line) => line.text === text)!;
    if (token !== null) reveal(line, token);
  }

  // --- View ---

  private build(): void {
    const { readings, state } = this.app;
    const texts = this.together ? range(readings.length) : [state.text];
    this.lines = texts.map((text) => lineOf(text, readings[text]));
    this.lines.forEach((line) => this.listen(line));
    const numbered = ({ text, list }: Line) =>
      el("div", { class: "text-line" }, el("span", { class: "text-number" }, text + 1), list);
    this.box.replaceChildren(...this.lines.map((line) => (this.together ? numbered(line) : line.list)));
  }

  private draw(): void {
    this.buttons();
    this.shade();
    for (const { text, spans } of this.lines) {
      const stop = followed(this.app, text) ?? 0;
      spans.forEach((span, token) => (span.tabIndex = token === stop ? 0 : -1));
    }
  }

  private shade(): void {
    const { app, lines } = this;
    const texts = lines.map((line) => line.text);
    const values = texts.map((text) => valuesOf(app, text));
    const high = highOf(app, texts, values);
    lines.forEach((line, i) => this.shadeLine(line, values[i], high));
    const unit = app.state.token === null ? "× an even share" : "share of attention";
    this.scale.replaceChildren(legend(app.state.theme, high, unit));
    this.caption.replaceChildren(...sentence(app));
  }

  private shadeLine({ text, list, spans }: Line, values: number[], high: number): void {
    const { state } = this.app;
    const [main, active] = [followed(this.app, text), text === state.text];
    list.classList.toggle("inactive", !active);
    spans.forEach((span, token) => {
      const blank = isBlank(this.app, text, token);
      const rgb = colour(state.theme, Number.isFinite(values[token]) ? values[token] : 0, high);
      span.style.setProperty("background-color", blank ? "" : css(rgb));
      span.style.setProperty("color", blank ? "" : ink(rgb));
      span.classList.toggle("hidden-token", blank);
      span.classList.toggle("selected", token === main);
      span.classList.toggle("partner", active && token === state.other);
      span.setAttribute("aria-selected", String(active && token === state.token));
    });
  }

  private buttons(): void {
    const { app } = this;
    const { state, page, reading } = app;
    this.tabs.replaceChildren();
    this.controls.replaceChildren();
    if (page.readings.length > 1 && !this.together) {
      const names = page.readings.map((_, i): [string, string] => [String(i), `Text ${i + 1}`]);
      this.tabs.append(choice("Which text", names, String(state.text), (text) => app.showText(Number(text))));
    }
    if (state.token === null) return;
    const layer = `Layer ${state.layer}, ${reading.exact ? "mean" : "strongest"}`;
    this.controls.append(
      choice("Direction", [["from", "Where it looks"], ["to", "Who looks at it"]], state.direction, (direction) =>
        app.set({ direction }),
      ),
      choice(
        "Over which heads",
        [["head", `Head ${state.layer}.${state.head}`], ["layer", layer], ["all", "All, strongest"]],
        state.scope,
        (scope) => app.set({ scope }),
      ),
    );
  }

  // --- Events ---

  private listen(line: Line): void {
    const { text, list } = line;
    list.addEventListener("click", (event) => {
      const token = tokenOf(event);
      if (token !== null) this.select(text, token);
    });
    list.addEventListener("pointermove", (event) => {
      const token = tokenOf(event);
      if (token === null || event.pointerType === "touch") hideTip();
      else tip(event.clientX, event.clientY, describe(this.app, text, token));
    });
    list.addEventListener("pointerleave", hideTip);
    list.addEventListener("keydown", (event) => this.press(event, line));
  }

  private press(event: KeyboardEvent, { text, spans }: Line): void {
    const token = tokenOf(event);
    if (token === null) return;
    if (event.key === "Enter" || event.key === " ") this.select(text, token);
    else if (event.key === "Escape") this.app.set({ token: null, other: null, grid: "maps" });
    else {
      const next = arrowStep(event.key, token, spans.length, lineLength(spans, token));
      if (next === token) return;
      spans[token].tabIndex = -1;
      spans[next].tabIndex = 0;
      spans[next].focus();
      this.app.say(describe(this.app, text, next).join(", "));
    }
    event.preventDefault();
  }

  private select(text: number, token: number): void {
    const { state } = this.app;
    const same = text === state.text && token === state.token;
    this.app.set({ text, token: same ? null : token, other: null, grid: "maps" });
  }
}
