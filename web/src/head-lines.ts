// The weights of a head as lines between tokens: a click selects a token or a pair.

import { type App, show, times } from "./app.ts";
import { arrow } from "./bidi.ts";
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
    figure.setAttribute("role", "img");
    figure.setAttribute("aria-label", `Lines of head ${layer}.${head}, from each token to those it looks at`);
    figure.addEventListener("click", (event) => this.select(event));
    figure.addEventListener("pointermove", (event) => this.describe(event));
    figure.addEventListener("pointerleave", hideTip);
    return figure;
  }

  private select(event: MouseEvent): void {
    const { token, side } = dataOf(event);
    const pair = pairOf(event);
    if (token && isDirection(side)) this.app.set({ text: this.text, token: Number(token), other: null, direction: side, scope: "head" });
    else if (pair) this.app.set({ text: this.text, token: pair[0], other: pair[1], direction: "from", scope: "head" });
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
