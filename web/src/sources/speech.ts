// A sound as the model reads it: its spectrogram over seconds, the words over the time at which they are said, and the
// attention of the selected word over time.

import { percent, show } from "../app.ts";
import { name } from "../bidi.ts";
import { el } from "../dom.ts";
import { range } from "../reading.ts";
import { type Cell, saveControls, type Sheet } from "../save.ts";
import { snapshot } from "../snapshot.ts";
import { hideTip, tip } from "../tip.ts";
import type { Changed, Panel, SourceApp } from "./app.ts";
import { overChoice, pieceChoice } from "./controls.ts";
import { SoundView } from "./sound.ts";
import { mark, type WordList, wordList } from "./words.ts";

export class SpeechPanel implements Panel {
  readonly element: HTMLElement;
  private readonly controls = el("div", { class: "controls", "data-unsaved": true });
  private readonly caption = el("p", { class: "caption", "aria-live": "polite" });
  private readonly lane = el("div", { class: "sound-lane", "aria-hidden": "true" });
  private readonly chips: HTMLElement[];
  private readonly view: SoundView;
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
    this.view = new SoundView(cross.data.sound!.spectrum, cross.duration, this.lane);
    const save = saveControls(app, {
      what: "the sound",
      part: () => (app.state.word === null ? "sound" : `sound-${cross.words.units[app.state.word]}`),
      figure: () => snapshot(this.view.inner, "Words over the sound", `${app.page.model.name} · ${this.caption.textContent}`),
      sheet: () => this.sheet(),
    });
    this.element = el(
      "section",
      { class: "panel", "aria-labelledby": "h-cross" },
      el("div", { class: "panel-head" }, el("h2", { id: "h-cross" }, "Words over the sound"), this.controls, save),
      this.words.list,
      this.caption,
      this.view.scroll,
    );
    this.listen();
    this.draw();
  }

  update(changed: Changed): void {
    if (changed.has("theme")) this.view.paint(this.app.state.theme);
    if (changed.has("hover")) return this.follow();
    this.draw();
    if (changed.has("word")) this.reveal();
  }

  shown(): void {
    this.view.paint(this.app.state.theme);
    this.view.shown(() => this.lay());
    this.reveal();
  }

  // --- View ---

  private lay(): void {
    const { scale } = this.view;
    this.app.cross.data.sound!.times.forEach(([start, end], word) => {
      this.chips[word].style.setProperty("left", `${start * scale}px`);
      this.chips[word].style.setProperty("min-width", `${Math.max(3, (end - start) * scale - 2)}px`);
    });
    this.follow();
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
    const row = word === null ? null : app.cross.row(word, app.heads, app.piece);
    this.view.frame(word === null ? null : app.cross.data.sound!.times[word]);
    this.view.draw(row, (part) => app.cross.secondsOf(part), app.cross.even(0));
    if (word === null || !row) {
      this.caption.textContent = "The spectrogram that the model reads: louder is stronger, high frequencies above. Click a word or a time.";
      return;
    }
    const silent = 1 - row.reduce((sum, weight) => sum + weight, 0);
    const { text } = app.cross.page.readings[0].tokens;
    const token = app.piece === null ? "" : ` (token ${name(text[app.cross.target.units[word][app.piece]])})`;
    this.caption.textContent =
      `Below: the attention of “${name(app.cross.words.units[word])}”${token} over time, ${app.where}.` +
      (silent > 0.005 ? ` ${percent(silent)} of it lies on the silence that follows the sound.` : "");
  }

  /** Scroll the selected word into view. */
  private reveal(): void {
    const { word } = this.app.state;
    if (word === null) return;
    this.view.reveal(this.app.cross.data.sound!.times[word]);
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
    const word = (event: MouseEvent) => {
      const chip = (event.target as HTMLElement).closest?.<HTMLElement>("[data-word]");
      return chip ? Number(chip.dataset.word) : this.app.cross.wordAt(this.view.secondAt(event));
    };
    const { inner } = this.view;
    inner.addEventListener("click", (event) => this.app.select(word(event)));
    inner.addEventListener("pointermove", (event) => {
      const at = this.view.secondAt(event);
      const said = word(event);
      const part = Math.min(this.app.cross.parts - 1, Math.floor((at / this.app.cross.duration) * this.app.cross.parts));
      const shown = this.app.word;
      const weight = shown === null ? [] : [`“${name(this.app.cross.words.units[shown])}” gives this moment ${show(this.app.cross.row(shown, this.app.heads, this.app.piece)[part])}`];
      tip(event.clientX, event.clientY, [`${at.toFixed(2)} s`, ...(said === null ? [] : [`while “${name(this.app.cross.words.units[said])}” is said`]), ...weight]);
    });
    inner.addEventListener("pointerleave", hideTip);
  }
}
