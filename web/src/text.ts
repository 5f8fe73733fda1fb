// The text itself: click a token, and the others are shaded by how much it looks at them, or they at it.
// Two texts that are compared stand side by side, and the same word of both is followed at once.

import { type App, type Changed, type Panel } from "./app.ts";
import { colour, css, ink, type Theme } from "./colour.ts";
import { arrowStep, choice, el } from "./dom.ts";
import { legend } from "./legend.ts";
import { Minimap } from "./minimap.ts";
import { saveControls } from "./save.ts";
import { Search } from "./search.ts";
import { snapshot } from "./snapshot.ts";
import { describe, followed, isBlank, MOST_RECEIVED, search, sentence, sheet, weightsOf } from "./text-model.ts";
import { Line, tokenOf } from "./text-view.ts";
import { hideTip, tip } from "./tip.ts";

const LONG = 250; // tokens of a text that needs a search and a map

/** One text on the page, and what stands above it. */
interface Strip {
  text: number;
  line: Line;
  dress: (span: HTMLElement, token: number) => void;
  map: Minimap | null;
  search: Search | null;
  hit: number | null;
}

export class TextPanel implements Panel {
  readonly element: HTMLElement;
  private readonly chips = el("div", { class: "chips beside", role: "group", "aria-label": "Words to begin with" });
  private readonly controls = el("div", { class: "controls", "data-unsaved": true });
  private readonly caption = el("p", { class: "caption", "aria-live": "polite" });
  private readonly scale = el("div", { class: "legend-line" });
  private readonly box: HTMLElement;
  private readonly strips: Strip[];

  constructor(private readonly app: App) {
    const several = app.readings.length > 1;
    this.strips = app.readings.map((_, text) => this.strip(text));
    this.box = el("div", { class: several ? "texts several" : "texts" }, ...this.strips.map((strip) => this.column(strip)));
    const save = saveControls(app, {
      what: this.title.toLowerCase(),
      part: () => (app.state.token === null ? "text" : `text-${app.reading.spelled(app.state.token)}`),
      figure: () => snapshot(this.box, this.named(), `${app.page.model.name} · ${this.caption.textContent}`, this.colours()),
      sheet: () => sheet(app),
    });
    this.element = el(
      "section",
      { class: "panel text-panel", "aria-labelledby": "h-text" },
      el("div", { class: "panel-head" }, el("h2", { id: "h-text" }, this.title), this.chips, this.controls, save),
      el("div", { class: "under" }, this.caption, this.scale),
      this.box,
    );
    this.draw();
  }

  update(changed: Changed): void {
    this.draw();
    if (changed.has("token") || changed.has("text")) this.reveal();
  }

  shown(): void {
    for (const { line } of this.strips) line.shown();
    this.draw();
    this.reveal();
    const stick = () => this.element.style.setProperty("--above", `${this.box.offsetTop - 6}px`);
    new ResizeObserver(stick).observe(this.element);
    stick();
  }

  // --- View ---

  private strip(text: number): Strip {
    const { app } = this;
    const reading = app.readings[text];
    const line = new Line(reading, (span, token) => strip.dress(span, token));
    const strip: Strip = { text, line, dress: () => {}, map: null, search: null, hit: null };
    this.listen(strip);
    if (reading.length < LONG) return strip;
    strip.map = new Minimap(line, reading.length, (token) => line.reveal(token));
    strip.search = new Search(
      (wanted) => search(reading.data.words.text, reading.units, wanted),
      (token) => {
        strip.hit = token;
        if (token !== null) line.reveal(token);
        this.draw();
      },
    );
    return strip;
  }

  private column({ text, line, map, search }: Strip): HTMLElement {
    const several = this.app.readings.length > 1;
    const head = (several || search) && el("div", { class: "text-head" }, several && el("h3", {}, `Text ${text + 1}`), search?.element);
    return el("div", { class: "text-column" }, head, map?.element, line.list);
  }

  private get title(): string {
    const { readings } = this.app;
    return readings[0].data.keys !== null ? "The parts of the sound" : readings.length > 1 ? "The texts" : "The text";
  }

  /** What a drawing of the panel shows: of a text that is scrolled, the tokens in view. */
  private named(): string {
    const count = (token: number) => token.toLocaleString("en");
    const parts = this.strips.map(({ line, text }) => {
      const { inView } = line;
      return inView && `tokens ${count(inView[0] + 1)} to ${count(inView[1] + 1)} of ${count(this.app.readings[text].length)}`;
    });
    const several = parts.length > 1;
    const seen = parts.flatMap((part, text) => (part ? [several ? `${part} in text ${text + 1}` : part] : []));
    return [this.title, ...seen].join(", ");
  }

  private reveal(): void {
    for (const strip of this.strips) {
      const token = followed(this.app, strip.text);
      if (token !== null) strip.line.reveal(token);
    }
  }

  private draw(): void {
    const { app } = this;
    this.buttons();
    for (const strip of this.strips) this.shade(strip);
    const colours = this.colours();
    this.scale.replaceChildren(...(colours ? [legend(colours.theme, colours.high)] : []));
    this.caption.replaceChildren(...sentence(app));
  }

  private shade(strip: Strip): void {
    const { app } = this;
    const { text, line, map, search } = strip;
    const { state } = app;
    const reading = app.readings[text];
    const weights = weightsOf(app, text);
    const high = app.high(state.layer, state.head);
    const [main, active] = [followed(app, text), text === state.text];
    line.list.classList.toggle("inactive", !active);
    line.list.classList.toggle("unselected", state.token === null);
    const received = state.token === null ? (token: number) => Math.min(1, reading.receivedTimesEven(token) / MOST_RECEIVED) : null;
    const value = (token: number) => received?.(token) ?? (weights && Number.isFinite(weights[token]) ? weights[token] : 0);
    const tint = (value: number) => colour(state.theme, value, received ? 1 : high);
    const stop = main ?? 0;
    strip.dress = (span, token) => {
      const blank = isBlank(app, text, token);
      const rgb = tint(value(token));
      const shaded = !blank && !received;
      span.style.setProperty("background-color", shaded ? css(rgb) : "");
      span.style.setProperty("color", shaded ? ink(rgb) : "");
      if (received) span.style.setProperty("--received", value(token).toFixed(3));
      span.classList.toggle("hidden-token", blank);
      span.classList.toggle("selected", token === main);
      span.classList.toggle("partner", active && token === state.other);
      span.classList.toggle("hit", token === strip.hit);
      span.setAttribute("aria-selected", String(active && token === state.token));
      span.tabIndex = token === stop ? 0 : -1;
    };
    line.redress(stop);
    const style = getComputedStyle(document.documentElement);
    const chosen = reading.data.chosen.map((word) => reading.units[word][0]);
    map?.draw((token) => (isBlank(app, text, token) ? null : value(token)), tint, [
      [chosen, style.getPropertyValue("--faint")],
      [search?.hits ?? [], style.getPropertyValue("--second")],
      [main === null ? [] : [main], style.getPropertyValue("--mark")],
    ]);
  }

  private buttons(): void {
    const { app } = this;
    const { state, reading } = app;
    const both = (text: number, word: number) => app.page.comparison?.pairs.find((pair) => pair[text] === word);
    const chosen = app.readings
      .flatMap((reading, text) => reading.data.chosen.map((word) => ({ text, word })))
      .filter(({ text, word }) => !both(text, word) || text === state.text);
    this.chips.replaceChildren(
      ...chosen.map(({ text, word }) => {
        const pressed = text === state.text && state.token !== null && reading.unitOf[state.token] === word;
        const several = app.readings.length > 1 && !both(text, word) && el("small", {}, ` ${text + 1}`);
        const look = { type: "button", class: "chip", "aria-pressed": String(pressed), "data-focus": `chip ${text} ${word}` };
        return el("button", { ...look, title: app.page.chosenBy, on: { click: () => app.follow(text, word) } }, el("bdi", {}, app.readings[text].unitText[word]), several);
      }),
    );
    this.controls.replaceChildren();
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

  private colours(): { theme: Theme; high: number } | undefined {
    const { theme, token, layer, head } = this.app.state;
    return token === null ? undefined : { theme, high: this.app.high(layer, head) };
  }

  // --- Events ---

  private listen({ text, line }: Strip): void {
    const { list } = line;
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
    list.addEventListener("keydown", (event) => this.press(event, text, line));
  }

  private press(event: KeyboardEvent, text: number, line: Line): void {
    const token = tokenOf(event);
    if (token === null || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter" || event.key === " ") this.select(text, token);
    else if (event.key === "Escape") this.app.set({ token: null, other: null, grid: "maps" });
    else {
      const mirrored: Record<string, string> = line.list.dir === "rtl" ? { ArrowLeft: "ArrowRight", ArrowRight: "ArrowLeft" } : {};
      const next = arrowStep(mirrored[event.key] ?? event.key, token, this.app.readings[text].length, line.lineLength(token));
      if (next === token) return;
      line.span(token).tabIndex = -1;
      line.span(next).tabIndex = 0;
      line.span(next).focus();
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
