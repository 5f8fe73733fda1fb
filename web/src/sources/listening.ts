// Where an encoder looks in the sound that it hears: the attention of a part of it over time.

import type { App, Changed, Panel } from "../app.ts";
import { el } from "../dom.ts";
import { saveControls } from "../save.ts";
import { snapshot } from "../snapshot.ts";
import { describe, placeOf, sentence, sheet, weightsOf } from "../text-model.ts";
import { hideTip, tip } from "../tip.ts";
import type { CrossData } from "./data.ts";
import { SoundView } from "./sound.ts";

export class ListeningPanel implements Panel {
  readonly element: HTMLElement;
  private readonly caption = el("p", { class: "caption", "aria-live": "polite" });
  private readonly view: SoundView;
  private readonly each: number; // seconds of a part

  constructor(
    private readonly app: App,
    { sound, states }: CrossData,
  ) {
    const { seconds, length, spectrum } = sound!;
    this.each = Math.ceil(states / app.reading.visible(0)) * seconds;
    this.view = new SoundView(spectrum, length * seconds);
    const save = saveControls(app, {
      what: "the sound",
      part: () => (app.state.token === null ? "sound" : `sound-${app.reading.spelled(app.state.token)}`),
      figure: () => snapshot(this.view.inner, "Over the sound", `${app.modelName} · ${this.caption.textContent}`),
      sheet: () => sheet(app),
    });
    this.element = el(
      "section",
      { class: "panel", "aria-labelledby": "h-sound" },
      el("div", { class: "panel-head" }, el("h2", { id: "h-sound" }, "Over the sound"), save),
      this.caption,
      this.view.scroll,
    );
    this.listen();
  }

  update(changed: Changed): void {
    if (changed.has("theme")) this.view.paint(this.app.state.theme);
    this.draw();
    if (changed.has("token")) this.reveal();
  }

  shown(): void {
    this.view.paint(this.app.state.theme);
    this.view.shown(() => this.draw());
    this.reveal();
  }

  private secondsOf = (part: number): [number, number] => [part * this.each, Math.min((part + 1) * this.each, this.view.duration)];

  private draw(): void {
    const { app, view } = this;
    const { token } = app.state;
    view.frame(token === null ? null : this.secondsOf(token));
    view.draw(weightsOf(app, 0), this.secondsOf, app.reading.data.even.share);
    if (token === null) this.caption.textContent = "The spectrogram that the model reads: louder is stronger, high frequencies above. Click a time to follow it.";
    else this.caption.replaceChildren(...sentence(app));
  }

  private reveal(): void {
    const { token } = this.app.state;
    if (token !== null) this.view.reveal(this.secondsOf(token));
  }

  private listen(): void {
    const { app, view } = this;
    const part = (event: MouseEvent) => Math.min(app.reading.length - 1, Math.floor(view.secondAt(event) / this.each));
    view.inner.addEventListener("click", (event) => {
      const token = part(event);
      app.set({ token: token === app.state.token ? null : token, other: null, grid: "maps" });
      if (app.state.token !== null) app.say(`${app.reading.spelled(token)}, ${placeOf(app)}`);
    });
    view.inner.addEventListener("pointermove", (event) => {
      if (event.pointerType === "touch") return hideTip();
      tip(event.clientX, event.clientY, describe(app, 0, part(event)));
    });
    view.inner.addEventListener("pointerleave", hideTip);
  }
}
