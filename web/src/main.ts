// Open the page: unpack the data that stands in it, and lay out the panels.

import { App, opening } from "./app.ts";
import type { Theme } from "./colour.ts";
import { unpackPage } from "./data.ts";
import { el } from "./dom.ts";
import { GridPanel } from "./grid.ts";
import { HeadPanel } from "./head.ts";
import { factsPanel } from "./head-facts.ts";
import { follow, fromHash } from "./hash.ts";
import { leadPanel } from "./lead.ts";
import { pathPanel } from "./path.ts";
import { picturePanels } from "./pictures/mount.ts";
import { RelationsPanel } from "./relations.ts";
import { SourcePage } from "./sources/mount.ts";
import { TextPanel } from "./text.ts";
import { WritingPanel } from "./writing.ts";

const given = new URLSearchParams(location.hash.slice(1)).get("theme") ?? new URLSearchParams(location.search).get("theme");
let themeChosen = given === "dark" || given === "light";
const preferred = (): Theme => {
  if (given === "dark" || given === "light") return given;
  return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
};

function header(app: App): HTMLElement {
  const { model, readings } = app.page;
  const hide = el("input", { type: "checkbox" });
  hide.addEventListener("change", () => app.set({ hide: hide.checked }));
  const change = () => {
    themeChosen = true;
    app.set({ theme: app.state.theme === "dark" ? "light" : "dark" });
  };
  const theme = el("button", { type: "button", class: "plain", on: { click: change } });
  const draw = () => {
    document.documentElement.dataset.theme = app.state.theme;
    theme.textContent = app.state.theme === "dark" ? "Light" : "Dark";
    hide.checked = app.state.hide;
  };
  draw();
  const part = app.page.pictures ? "patch" : "token";
  const sees = model.kind === "decoder" ? "each token sees itself and what came before" : `each ${part} sees every ${part}`;
  const tokens = readings.map((reading) => reading.tokens.text.length.toLocaleString("en")).join(" and ");
  const anyApart = readings.some((reading) => reading.tokens.apart.length > 0);
  const element = el(
    "header",
    {},
    el("div", { class: "brand" }, el("span", { class: "lamp", "aria-hidden": "true" }), el("h1", {}, "Limelight"),
      el("p", {}, el("b", {}, model.name), ` · ${model.layers} layers × ${model.heads} heads · ${tokens} tokens · ${sees}`)),
    el("div", { class: "controls" }, anyApart && el("label", { class: "check" }, hide, "Hide special tokens"), theme),
  );
  return app.add({ element, update: draw });
}

function footer(app: App): HTMLElement {
  return el(
    "footer",
    {},
    el("h2", {}, "How to read this"),
    el("ul", {}, ...app.page.notes.map((note) => el("li", {}, note))),
  );
}

/** The panels in their places; the large head over two texts takes the whole width. */
function panels(app: App): HTMLElement[] {
  if (app.page.pictures) return picturePanels(app, app.page.pictures);
  const compared = app.readings.length > 1;
  const [lead, text, relations] = [leadPanel(app), new TextPanel(app), new RelationsPanel(app)].map((panel) => app.add(panel));
  const [grid, head, facts, path] = [new GridPanel(app), new HeadPanel(app), factsPanel(app), pathPanel(app)].map((panel) => app.add(panel));
  const two = (left: HTMLElement[], right: HTMLElement[]) =>
    el("div", { class: "two" }, el("div", { class: "side" }, ...left), el("div", { class: "side" }, ...right));
  const flat = app.page.model.layers <= 12;
  const middle = compared ? [two([grid], [facts]), head] : [flat ? two([grid, facts], [head]) : two([grid], [head, facts])];
  const writing = app.page.writing ? [app.add(new WritingPanel(app, app.page.writing))] : [];
  return [lead, text, ...writing, relations, ...middle, path];
}

/** Print in light colours, whatever is on the screen. */
function onPrint(get: () => Theme, set: (theme: Theme) => void): void {
  let before: Theme = "light";
  addEventListener("beforeprint", () => {
    before = get();
    set("light");
  });
  addEventListener("afterprint", () => set(before));
}

async function open(): Promise<void> {
  const root = document.getElementById("limelight")!;
  const theme = preferred();
  document.documentElement.dataset.theme = theme;
  try {
    const page = await unpackPage(document.getElementById("limelight-data")!.textContent!);
    const status = el("div", { class: "unseen", role: "status", "aria-live": "polite" });
    if (page.cross) {
      const whole = new SourcePage(page, page.cross, theme, themeChosen, panels, status);
      whole.mount(root);
      onPrint(() => whole.theme, (theme) => (whole.theme = theme));
      document.documentElement.dataset.ready = "yes";
      return;
    }
    const app = new App(page, { ...opening(page, theme), ...fromHash(location.hash, page) }, status);
    root.replaceChildren(header(app), ...panels(app), footer(app), status);
    follow(app, () => themeChosen);
    onPrint(() => app.state.theme, (theme) => app.set({ theme }));
    app.shown();
    document.documentElement.dataset.ready = "yes";
  } catch (error) {
    root.replaceChildren(el("p", { class: "wait" }, `This page could not be read: ${(error as Error).message}`));
    document.documentElement.dataset.ready = "no";
    throw error;
  }
}

void open();
