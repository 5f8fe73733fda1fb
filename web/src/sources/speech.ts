// A sound as the model reads it: its spectrogram over seconds, the words over the time at which they are said, and the
// attention of the selected word over time.

import { percent, show, times } from "../app.ts";
import { shade } from "../colour.ts";
import { name } from "../bidi.ts";
import { el, svg } from "../dom.ts";
import { range } from "../reading.ts";
import { type Cell, saveControls, type Sheet } from "../save.ts";
import { snapshot } from "../snapshot.ts";
import { hideTip, tip } from "../tip.ts";
import type { Changed, Panel, SourceApp } from "./app.ts";
import { overChoice, pieceChoice } from "./controls.ts";
import { mark, type WordList, wordList } from "./words.ts";

const DENSE = 110; // pixels of a second, at least: words have to be read
const CURVE = 96; // pixels
const TOP = 16; // of the curve, for its largest value

export class SpeechPanel implements Panel {
  readonly element: HTMLElement;
  private readonly controls = el("div", { class: "controls", "data-unsaved": true });
  private readonly caption = el("p", { class: "caption", "aria-live": "polite" });
  private readonly canvas = el("canvas", { class: "spectrum", "aria-hidden": "true" });
  private readonly band = el("div", { class: "sound-band" });
  private readonly cursor = el("div", { class: "sound-cursor", "data-unsaved": true });
  private readonly lane = el("div", { class: "sound-lane", "aria-hidden": "true" });
  private readonly chips: HTMLElement[];
  private readonly axis = svg("svg", { class: "sound-axis", "aria-hidden": "true" });
  private readonly curve = svg("svg", { class: "sound-curve", role: "img" });
  private readonly inner: HTMLElement;
  private readonly scroll: HTMLElement;
  private readonly words: WordList;

  constructor(private readonly app: SourceApp) {
    const { cross } = app;
    this.words = wordList(cross.words, {
      label: "Words that are said",
      pick: (word) => app.select(word),
      preview: (word) => app.preview(word),
      describe: (word) => this.about(word),
      current: () => app.state.word,
    });
    this.words.list.classList.add("transcript");
    const { mark: punctuation } = cross.page.readings[0].words;
    let spoken = 0; // words stand in two rows by turns, since they are longer than their time
    this.chips = cross.words.units.map((text, word) => el("span", { class: !punctuation.includes(word) && spoken++ % 2 ? "sound-word low" : "sound-word", "data-word": word, hidden: punctuation.includes(word) }, el("bdi", {}, text)));
    this.lane.append(...this.chips);
    const picture = el("div", { class: "sound-picture" }, this.canvas, this.band, this.cursor);
    this.inner = el("div", { class: "sound" }, this.lane, picture, this.axis, this.curve);
    this.scroll = el("div", { class: "scroll-x sound-scroll" }, this.inner);
    const save = saveControls(app, {
      what: "the sound",
      part: () => (app.state.word === null ? "sound" : `sound-${cross.words.units[app.state.word]}`),
      figure: () => snapshot(this.inner, "Words over the sound", `${app.page.model.name} · ${this.caption.textContent}`),
      sheet: () => this.sheet(),
    });
    this.element = el(
      "section",
      { class: "panel", "aria-labelledby": "h-cross" },
      el("div", { class: "panel-head" }, el("h2", { id: "h-cross" }, "Words over the sound"), this.controls, save),
      this.words.list,
      this.caption,
      this.scroll,
    );
    this.listen();
    this.draw();
  }

  update(changed: Changed): void {
    if (changed.has("theme")) this.paint();
    if (changed.has("hover")) return this.follow();
    this.draw();
    if (changed.has("word")) this.reveal();
  }

  shown(): void {
    this.paint();
    new ResizeObserver(() => this.lay()).observe(this.scroll);
    this.lay();
    this.reveal();
  }

  // --- View ---

  /** Pixels of a second. */
  private get scale(): number {
    return this.inner.clientWidth / this.app.cross.duration;
  }

  private lay(): void {
    const { cross } = this.app;
    this.inner.style.setProperty("width", `${Math.max(this.scroll.clientWidth, Math.round(cross.duration * DENSE))}px`);
    const scale = this.scale;
    cross.data.sound!.times.forEach(([start, end], word) => {
      this.chips[word].style.setProperty("left", `${start * scale}px`);
      this.chips[word].style.setProperty("min-width", `${Math.max(3, (end - start) * scale - 2)}px`);
    });
    this.drawAxis();
    this.follow();
  }

  private drawAxis(): void {
    const { duration } = this.app.cross;
    const [width, scale] = [this.inner.clientWidth, this.scale];
    const step = [0.5, 1, 2, 5, 10].find((seconds) => seconds * scale >= 60) ?? 10;
    this.axis.setAttribute("viewBox", `0 0 ${width} 22`);
    this.axis.setAttribute("width", String(width));
    this.axis.replaceChildren(
      ...range(Math.floor(duration / step) + 1).flatMap((n) => {
        const x = n * step * scale;
        return [
          svg("path", { d: `M${x.toFixed(1)} 0v5`, class: "axis" }),
          svg("text", { x: x.toFixed(1), y: 17, class: "tick", "text-anchor": n ? (x > width - 12 ? "end" : "middle") : "start" }, n ? String(n * step) : "0 s"),
        ];
      }),
    );
  }

  /** Draw the spectrum, low frequencies at the bottom. */
  private paint(): void {
    const { spectrum } = this.app.cross.data.sound!;
    const [bands, frames] = spectrum.shape;
    this.canvas.width = frames;
    this.canvas.height = bands;
    const picture = new ImageData(frames, bands);
    for (let band = 0; band < bands; band++)
      for (let frame = 0; frame < frames; frame++)
        picture.data.set([...shade(this.app.state.theme, spectrum.values[band * frames + frame]), 255], 4 * ((bands - 1 - band) * frames + frame));
    this.canvas.getContext("2d")!.putImageData(picture, 0, 0);
  }

  private draw(): void {
    this.controls.replaceChildren(overChoice(this.app), ...[pieceChoice(this.app)].filter((one) => one !== null));
    mark(this.words, this.app.state.word);
    this.follow();
  }

  /** Show the word under the pointer, else the selected one. */
  private follow(): void {
    const { app } = this;
    const { word } = app;
    this.chips.forEach((chip, at) => chip.classList.toggle("selected", at === word));
    this.band.hidden = word === null;
    if (word === null) {
      this.caption.textContent = "The spectrogram that the model reads: louder is stronger, high frequencies above. Click a word or a time.";
      return this.curve.replaceChildren();
    }
    const [start, end] = app.cross.data.sound!.times[word];
    this.band.style.setProperty("left", `${start * this.scale}px`);
    this.band.style.setProperty("width", `${Math.max(2, (end - start) * this.scale)}px`);
    const row = app.cross.row(word, app.heads, app.piece);
    const silent = 1 - row.reduce((sum, weight) => sum + weight, 0);
    const { text } = app.cross.page.readings[0].tokens;
    const token = app.piece === null ? "" : ` (token ${name(text[app.cross.target.units[word][app.piece]])})`;
    this.caption.textContent =
      `Below: the attention of “${name(app.cross.words.units[word])}”${token} over time, ${app.where}.` +
      (silent > 0.005 ? ` ${percent(silent)} of it lies on the silence that follows the sound.` : "");
    this.drawCurve(row);
  }

  private drawCurve(row: Float32Array): void {
    const { cross } = this.app;
    const [width, scale] = [this.inner.clientWidth, this.scale];
    const high = Math.max(1e-6, ...row);
    const y = (value: number) => CURVE - 1 - (value / high) * (CURVE - TOP - 2);
    this.curve.setAttribute("viewBox", `0 0 ${width} ${CURVE}`);
    this.curve.setAttribute("width", String(width));
    const at = Array.from(row, (weight, part) => {
      const [start, end] = cross.secondsOf(part);
      return `${(((start + end) / 2) * scale).toFixed(1)} ${y(weight).toFixed(1)}`;
    });
    const even = y(cross.even(0));
    const best = row.indexOf(high);
    const x = ((cross.secondsOf(Math.max(0, best))[0] + cross.secondsOf(Math.max(0, best))[1]) / 2) * scale;
    this.curve.replaceChildren(
      svg("title", {}, `Attention over time, largest ${show(high)} at ${(x / scale).toFixed(2)} seconds`),
      svg("path", { d: `M0 ${CURVE - 1}L${at.join("L")}L${width} ${CURVE - 1}Z`, class: "sound-area" }),
      svg("path", { d: `M${at.join("L")}`, class: "line main" }),
      svg("path", { d: `M0 ${even.toFixed(1)}H${width}`, class: "even-line", "stroke-dasharray": "4 4" }),
      svg("text", { x: Math.min(width - 4, Math.max(4, x)), y: 12, class: "tick", "text-anchor": x > width - 80 ? "end" : x < 80 ? "start" : "middle" }, `${show(high)} at ${(x / scale).toFixed(2)} s, ${times(high, cross.even(0))} even`),
    );
  }

  /** Scroll the selected word into view. */
  private reveal(): void {
    const { word } = this.app.state;
    if (word === null) return;
    const [start, end] = this.app.cross.data.sound!.times[word];
    const [left, right] = [start * this.scale, end * this.scale];
    const { scrollLeft, clientWidth } = this.scroll;
    if (left < scrollLeft || right > scrollLeft + clientWidth) this.scroll.scrollLeft = (left + right - clientWidth) / 2;
  }

  // --- Model ---

  private about(word: number): string[] {
    const [start, end] = this.app.cross.data.sound!.times[word];
    return [name(this.app.cross.words.units[word]), `${start.toFixed(2)} to ${end.toFixed(2)} s`];
  }

  private sheet(): Sheet {
    const { app } = this;
    const word = app.state.word;
    const row = word === null ? null : app.cross.row(word, app.heads, app.state.piece);
    const header = ["start", "end", "word", `weight${word === null ? "" : ` of ${app.cross.words.units[word]}, ${app.where}`}`, "even"];
    return {
      header,
      rows: range(app.cross.parts).map((part): Cell[] => {
        const [start, end] = app.cross.secondsOf(part);
        const said = app.cross.wordAt((start + end) / 2);
        return [start, end, said === null ? "" : app.cross.words.units[said], row ? row[part] : null, app.cross.even(part)];
      }),
    };
  }

  // --- Events ---

  private listen(): void {
    const second = (event: MouseEvent) => Math.min(this.app.cross.duration, Math.max(0, (event.clientX - this.inner.getBoundingClientRect().left) / this.scale));
    const word = (event: MouseEvent) => {
      const chip = (event.target as HTMLElement).closest?.<HTMLElement>("[data-word]");
      return chip ? Number(chip.dataset.word) : this.app.cross.wordAt(second(event));
    };
    this.inner.addEventListener("click", (event) => this.app.select(word(event)));
    this.inner.addEventListener("pointermove", (event) => {
      const at = second(event);
      this.cursor.hidden = false;
      this.cursor.style.setProperty("left", `${at * this.scale}px`);
      const said = word(event);
      const part = Math.min(this.app.cross.parts - 1, Math.floor((at / this.app.cross.duration) * this.app.cross.parts));
      const shown = this.app.word;
      const weight = shown === null ? [] : [`“${name(this.app.cross.words.units[shown])}” gives this moment ${show(this.app.cross.row(shown, this.app.heads, this.app.piece)[part])}`];
      tip(event.clientX, event.clientY, [`${at.toFixed(2)} s`, ...(said === null ? [] : [`while “${name(this.app.cross.words.units[said])}” is said`]), ...weight]);
    });
    this.inner.addEventListener("pointerleave", () => {
      this.cursor.hidden = true;
      hideTip();
    });
  }
}
