// The weights of a head as lines between tokens: a click selects a token or a pair.

import { type App, show, times } from "./app.ts";
import { arrow } from "./bidi.ts";
import { arrowStep } from "./dom.ts";
import { drawLines } from "./figure.ts";
import { isDirection } from "./reading.ts";
import { hideTip, tip } from "./tip.ts";

export class LinesView {
  constructor(
    private readonly app: App,
    private readonly text: number,
  ) {}

  /** Draw the lines of the selected head. */
  figure(): SVGSVGElement {
    const { layer, head } = this.app.state;
    const figure = drawLines(this.app, false, this.text);
    figure.setAttribute("role", "group");
    figure.setAttribute("aria-label", `Lines of head ${layer}.${head}, from each token to those it looks at. Arrow keys move, Enter selects.`);
    const names = [...figure.querySelectorAll<SVGElement>("[data-token]")]; // of each token two: it looks, it is looked at
    names.forEach((name, at) => {
      name.setAttribute("role", "button");
      name.setAttribute("tabindex", at ? "-1" : "0");
      name.setAttribute("aria-label", `${name.textContent}, ${name.dataset.side === "from" ? "looks" : "is looked at"}`);
      name.setAttribute("data-focus", `line ${this.text} ${at}`);
    });
    figure.addEventListener("keydown", (event) => this.press(event, names));
    figure.addEventListener("click", (event) => this.select(event));
    figure.addEventListener("pointermove", (event) => this.describe(event));
    figure.addEventListener("pointerleave", hideTip);
    return figure;
  }

  private select(event: MouseEvent): void {
    const pair = pairOf(event);
    if (!this.choose(dataOf(event)) && pair) this.app.set({ text: this.text, token: pair[0], other: pair[1], direction: "from", scope: "head" });
  }

  /** Select the token of a name, if it is one. */
  private choose({ token, side }: DOMStringMap): boolean {
    if (!token || !isDirection(side)) return false;
    this.app.set({ text: this.text, token: Number(token), other: null, direction: side, scope: "head" });
    return true;
  }

  private press(event: KeyboardEvent, names: SVGElement[]): void {
    const at = names.indexOf(event.target as SVGElement);
    if (at < 0) return;
    if (event.key === "Enter" || event.key === " ") this.choose(names[at].dataset);
    else {
      const next = arrowStep(event.key, at, names.length, 2);
      if (next === at) return;
      names[at].setAttribute("tabindex", "-1");
      names[next].setAttribute("tabindex", "0");
      names[next].focus();
    }
    event.preventDefault();
  }

  private describe(event: PointerEvent): void {
    const { state } = this.app;
    const reading = this.app.readings[this.text];
    const pair = pairOf(event);
    if (!pair) return hideTip();
    const [query, key] = pair;
    const [weight, even] = [reading.weight(state.layer, state.head, query, key), 1 / reading.visible(query)];
    tip(event.clientX, event.clientY, [
      arrow(reading.spelled(query), reading.spelled(key)),
      `${show(weight)}  (even ${show(even)}, ${times(weight, even)})`,
    ]);
  }
}

/** The data attributes of the element that an event happened on. */
const dataOf = (event: Event): DOMStringMap => (event.target as SVGElement).dataset ?? {};

/** The pair of tokens of a line, query first. */
function pairOf(event: Event): [number, number] | null {
  const [query, key] = dataOf(event).pair?.split(" ").map(Number) ?? [];
  return key === undefined ? null : [query, key];
}
