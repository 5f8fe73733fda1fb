// A sound on the page: its spectrogram over seconds, an axis, and a curve of weights below.

import { show, times } from "../app.ts";
import { shade, type Theme } from "../colour.ts";
import { el, svg } from "../dom.ts";
import type { Tensor } from "../data.ts";
import { range } from "../reading.ts";

const DENSE = 110; // pixels of a second, at least: words have to be read
const CURVE = 96; // pixels
const TOP = 16; // of the curve, for its largest value

type Span = [start: number, end: number]; // in seconds

export class SoundView {
  readonly inner: HTMLElement;
  readonly scroll: HTMLElement;
  private readonly canvas = el("canvas", { class: "spectrum", "aria-hidden": "true" });
  private readonly band = el("div", { class: "sound-band", hidden: true });
  private readonly cursor = el("div", { class: "sound-cursor", "data-unsaved": true, hidden: true });
  private readonly axis = svg("svg", { class: "sound-axis", "aria-hidden": "true" });
  private readonly curve = svg("svg", { class: "sound-curve", role: "img" });

  /** `lane` stands above the spectrogram. */
  constructor(
    private readonly spectrum: Tensor,
    readonly duration: number,
    lane?: HTMLElement,
  ) {
    const picture = el("div", { class: "sound-picture" }, this.canvas, this.band, this.cursor);
    this.inner = el("div", { class: "sound" }, lane, picture, this.axis, this.curve);
    this.scroll = el("div", { class: "scroll-x sound-scroll" }, this.inner);
    this.inner.addEventListener("pointermove", (event) => {
      this.cursor.hidden = false;
      this.cursor.style.setProperty("left", `${this.secondAt(event) * this.scale}px`);
    });
    this.inner.addEventListener("pointerleave", () => (this.cursor.hidden = true));
  }

  /** Pixels of a second. */
  get scale(): number {
    return this.inner.clientWidth / this.duration;
  }

  /** The time under the pointer. */
  secondAt(event: MouseEvent): number {
    return Math.min(this.duration, Math.max(0, (event.clientX - this.inner.getBoundingClientRect().left) / this.scale));
  }

  /** Take the width that there is, then call `laid`, now and whenever it changes. */
  shown(laid: () => void): void {
    const lay = () => {
      this.inner.style.setProperty("width", `${Math.max(this.scroll.clientWidth, Math.round(this.duration * DENSE))}px`);
      this.drawAxis();
      laid();
    };
    new ResizeObserver(lay).observe(this.scroll);
    lay();
  }

  /** Draw the spectrum, low frequencies at the bottom. */
  paint(theme: Theme): void {
    const { shape: [bands, frames], values } = this.spectrum;
    this.canvas.width = frames;
    this.canvas.height = bands;
    const picture = new ImageData(frames, bands);
    for (let band = 0; band < bands; band++)
      for (let frame = 0; frame < frames; frame++)
        picture.data.set([...shade(theme, values[band * frames + frame]), 255], 4 * ((bands - 1 - band) * frames + frame));
    this.canvas.getContext("2d")!.putImageData(picture, 0, 0);
  }

  /** Frame a part of the sound, or none. */
  frame(span: Span | null): void {
    this.band.hidden = span === null;
    if (!span) return;
    this.band.style.setProperty("left", `${span[0] * this.scale}px`);
    this.band.style.setProperty("width", `${Math.max(2, (span[1] - span[0]) * this.scale)}px`);
  }

  /** Scroll a part of the sound into view. */
  reveal(span: Span): void {
    const [left, right] = span.map((second) => second * this.scale);
    const { scrollLeft, clientWidth } = this.scroll;
    if (left < scrollLeft || right > scrollLeft + clientWidth) this.scroll.scrollLeft = (left + right - clientWidth) / 2;
  }

  /** Draw a weight for each part of the sound, beside its even share; or none. */
  draw(row: Float32Array | null, secondsOf: (part: number) => Span, even: number): void {
    if (!row) return this.curve.replaceChildren();
    const width = this.inner.clientWidth;
    const high = Math.max(1e-6, ...row);
    const y = (value: number) => CURVE - 1 - (value / high) * (CURVE - TOP - 2);
    const middle = (part: number) => ((secondsOf(part)[0] + secondsOf(part)[1]) / 2) * this.scale;
    const at = Array.from(row, (weight, part) => `${middle(part).toFixed(1)} ${y(weight).toFixed(1)}`);
    const x = middle(Math.max(0, row.indexOf(high)));
    const where = (x / this.scale).toFixed(2);
    this.curve.setAttribute("viewBox", `0 0 ${width} ${CURVE}`);
    this.curve.setAttribute("width", String(width));
    this.curve.replaceChildren(
      svg("title", {}, `Attention over time, largest ${show(high)} at ${where} seconds`),
      svg("path", { d: `M0 ${CURVE - 1}L${at.join("L")}L${width} ${CURVE - 1}Z`, class: "sound-area" }),
      svg("path", { d: `M${at.join("L")}`, class: "line main" }),
      svg("path", { d: `M0 ${y(even).toFixed(1)}H${width}`, class: "even-line", "stroke-dasharray": "4 4" }),
      svg("text", { x: Math.min(width - 4, Math.max(4, x)), y: 12, class: "tick", "text-anchor": x > width - 80 ? "end" : x < 80 ? "start" : "middle" }, `${show(high)} at ${where} s, ${times(high, even)} even`),
    );
  }

  private drawAxis(): void {
    const [width, scale] = [this.inner.clientWidth, this.scale];
    const step = [0.5, 1, 2, 5, 10].find((seconds) => seconds * scale >= 60) ?? 10;
    this.axis.setAttribute("viewBox", `0 0 ${width} 22`);
    this.axis.setAttribute("width", String(width));
    this.axis.replaceChildren(
      ...range(Math.floor(this.duration / step) + 1).flatMap((n) => {
        const x = n * step * scale;
        return [
          svg("path", { d: `M${x.toFixed(1)} 0v5`, class: "axis" }),
          svg("text", { x: x.toFixed(1), y: 17, class: "tick", "text-anchor": n ? (x > width - 12 ? "end" : "middle") : "start" }, n ? String(n * step) : "0 s"),
        ];
      }),
    );
  }
}
