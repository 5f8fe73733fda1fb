// A long text at a glance: every token a column, shaded as the text is; the frame is what is in view.

import { el } from "./dom.ts";

const HEIGHT = 26;

export class Minimap {
  readonly element = el("div", { class: "minimap", "aria-hidden": "true", "data-unsaved": true });
  private readonly canvas = el("canvas", {});
  private readonly frame = el("div", { class: "frame" });

  /** `go` is called with a token to bring into view. */
  constructor(
    private readonly list: HTMLElement,
    private readonly spans: HTMLElement[],
    go: (token: number) => void,
  ) {
    this.element.append(this.canvas, this.frame);
    list.addEventListener("scroll", () => this.place(), { passive: true });
    new ResizeObserver(() => this.place()).observe(list);
    const move = (event: PointerEvent) => {
      const { left, width } = this.element.getBoundingClientRect();
      go(Math.max(0, Math.min(spans.length - 1, Math.floor(((event.clientX - left) / width) * spans.length))));
    };
    this.element.addEventListener("pointerdown", (event) => {
      this.element.setPointerCapture(event.pointerId);
      move(event);
    });
    this.element.addEventListener("pointermove", (event) => {
      if (event.buttons) move(event);
    });
  }

  /** Draw the tokens in these colours; `marks` are drawn over them, from the bottom. */
  draw(colours: ([number, number, number] | null)[], strength: (token: number) => number, marks: [number[], string][]): void {
    const width = Math.min(1200, colours.length);
    this.canvas.width = width;
    this.canvas.height = HEIGHT;
    const context = this.canvas.getContext("2d")!;
    const best = new Int32Array(width).fill(-1);
    for (let token = 0; token < colours.length; token++) {
      const x = Math.floor((token * width) / colours.length);
      if (colours[token] && (best[x] < 0 || strength(token) > strength(best[x]))) best[x] = token;
    }
    best.forEach((token, x) => {
      if (token < 0) return;
      const [r, g, b] = colours[token]!;
      context.fillStyle = `rgb(${r} ${g} ${b})`;
      context.fillRect(x, 0, 1, HEIGHT);
    });
    for (const [tokens, colour] of marks) {
      context.fillStyle = colour;
      for (const token of tokens) context.fillRect(Math.floor((token * width) / colours.length) - 1, HEIGHT - 8, 3, 8);
    }
    this.place();
  }

  /** Put the frame over the tokens that are in view. */
  private place(): void {
    const { list, spans, frame } = this;
    const first = this.at(list.scrollTop);
    const last = this.at(list.scrollTop + list.clientHeight);
    frame.style.setProperty("left", `${(100 * first) / spans.length}%`);
    frame.style.setProperty("width", `${Math.max(0.6, (100 * (last - first)) / spans.length)}%`);
  }

  /** The first token below a height of the list. */
  private at(top: number): number {
    let [low, high] = [0, this.spans.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.spans[middle].offsetTop < top) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
