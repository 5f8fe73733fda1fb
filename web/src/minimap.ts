// A long text at a glance: every token a column, shaded as the text is; the frame is what is in view.

import { el } from "./dom.ts";
import type { Line } from "./text-view.ts";

const HEIGHT = 26;

export class Minimap {
  readonly element = el("div", { class: "minimap", "aria-hidden": "true", "data-unsaved": true });
  private readonly canvas = el("canvas", {});
  private readonly frame = el("div", { class: "frame" });
  private placing = 0;

  /** `go` is called with a token to bring into view. */
  constructor(
    private readonly line: Line,
    private readonly length: number,
    go: (token: number) => void,
  ) {
    this.element.append(this.canvas, this.frame);
    line.list.addEventListener("scroll", () => this.soon(), { passive: true });
    new ResizeObserver(() => this.soon()).observe(line.list);
    const move = (event: PointerEvent) => {
      const { left, width } = this.element.getBoundingClientRect();
      go(Math.max(0, Math.min(length - 1, Math.floor(((event.clientX - left) / width) * length))));
    };
    this.element.addEventListener("pointerdown", (event) => {
      this.element.setPointerCapture(event.pointerId);
      move(event);
    });
    this.element.addEventListener("pointermove", (event) => {
      if (event.buttons) move(event);
    });
  }

  /** Draw the tokens by a strength and its colour, null where there is none; `marks` are drawn over them, from the bottom. */
  draw(strength: (token: number) => number | null, colour: (strength: number) => [number, number, number], marks: [number[], string][]): void {
    const { length } = this;
    const width = Math.min(1200, length);
    this.canvas.width = width;
    this.canvas.height = HEIGHT;
    const context = this.canvas.getContext("2d")!;
    const best = new Float64Array(width).fill(-1);
    for (let token = 0; token < length; token++) {
      const x = Math.floor((token * width) / length);
      const of = strength(token);
      if (of !== null && of > best[x]) best[x] = of;
    }
    best.forEach((of, x) => {
      if (of < 0) return;
      const [r, g, b] = colour(of);
      context.fillStyle = `rgb(${r} ${g} ${b})`;
      context.fillRect(x, 0, 1, HEIGHT);
    });
    for (const [tokens, mark] of marks) {
      context.fillStyle = mark;
      for (const token of tokens) context.fillRect(Math.floor((token * width) / length) - 1, HEIGHT - 8, 3, 8);
    }
    this.soon();
  }

  /** Put the frame in its place before the next picture of the screen. */
  private soon(): void {
    this.placing ||= requestAnimationFrame(() => {
      this.placing = 0;
      this.place();
    });
  }

  /** Put the frame over the tokens that are in view. */
  private place(): void {
    const { line, frame, length } = this;
    const first = line.tokenAt(line.list.scrollTop);
    const last = line.tokenAt(line.list.scrollTop + line.list.clientHeight);
    frame.style.setProperty("left", `${(100 * first) / length}%`);
    frame.style.setProperty("width", `${Math.max(0.6, (100 * (last - first)) / length)}%`);
  }
}
