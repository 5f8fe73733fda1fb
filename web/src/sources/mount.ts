// The page of an encoder-decoder: its panels, and those of a text for the self-attention of either side.

import { address as addressOfText, fromAddress as fromAddressOfText } from "../address.ts";
import { App, opening as openingOfText, type Panel } from "../app.ts";
import type { Theme } from "../colour.ts";
import type { Page } from "../data.ts";
import { choice, el } from "../dom.ts";
import { footer, header, themeOf } from "../frame.ts";
import { onHash, readHash, writeHash } from "../link.ts";
import { address, type Changed, fromAddress, hasDecoder, opening, SourceApp, type View } from "./app.ts";
import { saying } from "./controls.ts";
import { Cross, type CrossData } from "./data.ts";
import { CrossHeadsPanel } from "./heads.ts";
import { ListeningPanel } from "./listening.ts";
import { CrossMapPanel } from "./map.ts";
import { SpeechPanel } from "./speech.ts";
import { AlignmentTable, StrongestPanel } from "./table.ts";
import { TranslationPanel } from "./translation.ts";

type Panels = (app: App, above?: Panel) => HTMLElement[];

/** The part of a page that is laid out as that of one text. */
interface Inner {
  app: App;
  element: HTMLElement;
  isShown: boolean;
}

const NAMES: Record<View, string> = { cross: "Cross-attention", decoder: "Decoder self-attention", encoder: "Encoder self-attention" };

export class SourcePage {
  private readonly app: SourceApp;
  private readonly inner = new Map<View, Inner>();
  private readonly body = el("div", {});
  private readonly tabs = el("div", { class: "cross-tabs" });
  private readonly main: HTMLElement;

  constructor(
    private readonly page: Page,
    private readonly data: CrossData,
    theme: Theme,
    private readonly panels: Panels,
    private readonly status: HTMLElement,
  ) {
    const cross = new Cross(page, data);
    const opened = opening(cross, theme);
    this.app = new SourceApp(page, cross, fromAddress(cross, readHash(), opened), status, () => this.write());
    this.main = el("div", {}, ...this.crossPanels(), footer(page.notes));
    onHash(() => this.restore(fromAddress(cross, readHash(), { ...opened, theme: this.app.state.theme })));
  }

  /** Lay the page out in an element. */
  mount(root: HTMLElement): void {
    root.replaceChildren(this.header(), this.tabs, this.body, this.status);
    this.app.add({ element: this.body, update: (changed) => this.update(changed) });
    this.show();
    this.app.shown();
  }

  private update(changed: Changed): void {
    const { theme } = this.app.state;
    if (changed.has("theme")) for (const { app } of this.inner.values()) app.set({ theme });
    if (changed.has("view")) this.show();
  }

  // --- View ---

  private crossPanels(): HTMLElement[] {
    const { app } = this;
    const two = (left: HTMLElement[], right: HTMLElement[]) => el("div", { class: "two" }, el("div", { class: "side" }, ...left), el("div", { class: "side" }, ...right));
    const text = app.cross.source !== null;
    const [strongest, heads, map, table] = [new StrongestPanel(app), new CrossHeadsPanel(app), new CrossMapPanel(app), new AlignmentTable(app)].map((panel) => app.add(panel));
    if (text) return [this.lead(), two([app.add(new TranslationPanel(app)), heads], [strongest, map]), table];
    return [this.lead(), app.add(new SpeechPanel(app)), two([heads, strongest], [map, table])];
  }

  private lead(): HTMLElement {
    const { app } = this;
    const said = el("p", { class: "said", "aria-live": "polite" });
    const hint = app.cross.source
      ? "Click any word of either side to follow it, or a head to see it alone. "
      : "Click a word or a time in the sound to follow it, or a head to see it alone. ";
    const warnings = this.page.warnings.map((warning) => el("p", { class: "warning", role: "note" }, warning));
    const more = el("p", { class: "quiet more" }, hint, "A weight says where a head took its values from; it is not an explanation.");
    const element = el("section", { class: "lead", "aria-label": "In a sentence" }, said, more, ...warnings);
    const draw = () => said.replaceChildren(...saying(app));
    draw();
    return app.add({ element, update: (changed) => !changed.has("hover") && draw() });
  }

  private header(): HTMLElement {
    const { page, data } = this;
    const tokens = page.readings[0].tokens.text.length.toLocaleString("en");
    const facts = ` · cross-attention of ${data.layers} layers × ${data.heads} heads · ${tokens} tokens written`;
    const length = data.sound ? ` · ${this.app.cross.duration.toFixed(1)} s of sound` : "";
    return header(this.app, [el("b", {}, page.model.name), facts + length]);
  }

  private get views(): View[] {
    return ["cross", ...(hasDecoder(this.page) ? (["decoder"] as View[]) : []), ...(this.data.encoder ? (["encoder"] as View[]) : [])];
  }

  private show(): void {
    const { view } = this.app.state;
    if (this.views.length > 1)
      this.tabs.replaceChildren(
        choice("What is shown", this.views.map((view): [View, string] => [view, NAMES[view]]), view, (view) => this.app.set({ view })),
      );
    if (view === "cross") return this.body.replaceChildren(this.main);
    const inner = this.innerOf(view);
    this.body.replaceChildren(inner.element);
    if (!inner.isShown) inner.app.shown();
    inner.isShown = true;
  }

  /** The panels of a text over one side, made when they are first shown. */
  private innerOf(view: View): Inner {
    const known = this.inner.get(view);
    if (known) return known;
    const page: Page = view === "encoder" ? this.data.encoder! : { ...this.page, model: { ...this.page.model, kind: "decoder" }, warnings: [] };
    const hash = readHash();
    const mine = hash.get("view") === view;
    hash.delete("theme");
    const app = new App(page, { ...openingOfText(page, this.app.state.theme), ...(mine ? fromAddressOfText(hash, page) : {}) }, this.status, () => this.write());
    const heard = view === "encoder" && this.data.sound ? new ListeningPanel(app, this.data) : undefined;
    const element = el("div", {}, ...this.panels(app, heard), footer(page.notes));
    const inner = { app, element, isShown: false };
    this.inner.set(view, inner);
    return inner;
  }

  // --- Address ---

  private restore(state: ReturnType<typeof fromAddress>): void {
    this.app.set(state);
    const inner = this.inner.get(state.view);
    if (inner) inner.app.set(fromAddressOfText(readHash(), inner.app.page));
  }

  private write(): void {
    writeHash(() => {
      const { state } = this.app;
      const inner = this.inner.get(state.view);
      return { ...address(state), ...(inner && addressOfText(inner.app.state)), ...themeOf(state) };
    });
  }
}
