// Open the page of an atlas: unpack the data that stands in it, and lay out the panels.

import type { Theme } from "../colour.ts";
import { el } from "../dom.ts";
import { onHash, readHash, writeHash } from "../link.ts";
import { address, App, fromAddress, opening, type State } from "./app.ts";
import { unpackAtlas } from "./data.ts";
import { ExamplesPanel } from "./examples.ts";
import { GridPanel } from "./grid.ts";
import { HeadPanel } from "./head.ts";
import { LayersPanel } from "./layers.ts";
import { Atlas } from "./model.ts";
import { notes } from "./notes.ts";
import { ScatterPanel } from "./scatter.ts";
import { TablePanel } from "./table.ts";
import { count, plural } from "./text.ts";

const requested = new URLSearchParams(location.search).get("theme");
const preferred = (): Theme =>
  requested === "dark" || requested === "light" ? requested : matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";

function header(app: App): HTMLElement {
  const { model } = app.atlas.data;
  const theme = el("button", { type: "button", class: "plain" });
  const name = () => (theme.textContent = app.state.theme === "dark" ? "Light" : "Dark");
  name();
  theme.addEventListener("click", () => {
    const next: Theme = app.state.theme === "dark" ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    app.set({ theme: next });
    name();
  });
  const facts = `${plural(model.layers, "layer")} × ${plural(model.heads, "head")}`;
  return el(
    "header",
    { class: "atlas-page" },
    el("div", { class: "brand" }, el("span", { class: "lamp", "aria-hidden": "true" }), el("h1", {}, "Limelight"), el("p", {}, "Atlas of heads · ", el("b", {}, el("bdi", {}, model.name)), ` · ${facts}`)),
    el("div", { class: "controls" }, theme),
  );
}

/** What was found, in one sentence, and what to do with it. */
function lead({ atlas }: App): HTMLElement {
  const { model, corpus, other } = atlas.data;
  const places = Array.from({ length: atlas.count }, (_, place) => place);
  const some = places.filter((place) => atlas.rolesOf(place).length).length;
  const sinks = atlas.sinks();
  return el(
    "div",
    { class: "atlas-lead" },
    el(
      "p",
      {},
      "Over ", el("b", {}, plural(corpus.tokens, "token")), " of ", el("bdi", {}, corpus.name), `, `, el("b", {}, plural(some, "head")), ` of ${count(atlas.count)} in `, el("bdi", {}, model.name),
      some === 1 ? " holds a role" : " hold a role", sinks !== null && ", ", sinks !== null && el("b", {}, count(sinks)), sinks === null ? "" : sinks === 1 ? " has an attention sink" : " have an attention sink",
      ", and for ", el("b", {}, count(atlas.count - some)), " no role was found.",
    ),
    other && el("p", {}, "Beside it, head by head: ", el("bdi", {}, other.name), `, over ${plural(other.corpus.tokens, "token")} of `, el("bdi", {}, other.corpus.name), "."),
    el("p", { class: "quiet" }, "Click a head to see its evidence. An attention weight is not an explanation of what the model does."),
  );
}

/** Lay out an atlas in an element. Returns its state's owner. */
export function mount(root: HTMLElement, atlas: Atlas, theme: Theme): App {
  const status = el("div", { class: "unseen", role: "status", "aria-live": "polite" });
  const opened = opening(atlas, theme);
  const app = new App(atlas, fromAddress(atlas, readHash(), opened), status, (state: State) => writeHash(address(atlas, state, opened)));
  onHash(() => app.set({ ...fromAddress(atlas, readHash(), opened), theme: app.state.theme }));
  const head = new HeadPanel(app);
  const grid = new GridPanel(app, () => head.focus());
  const scatter = app.add(new ScatterPanel(app));
  const beside = atlas.layers <= 14; // under a grid that is not tall
  const parts: (Node | false)[] = [
    header(app),
    lead(app),
    el("div", { class: "two atlas-two" }, el("div", { class: "left" }, app.add(grid), beside && scatter), app.add(head)),
    app.add(new ExamplesPanel(app)),
    !beside && scatter,
    app.add(new TablePanel(app)),
    atlas.data.layers.length > 0 && app.add(new LayersPanel(app)),
    notes(app),
    status,
  ];
  root.replaceChildren(...parts.filter((part) => part !== false));
  app.shown();
  return app;
}

async function open(): Promise<void> {
  const root = document.getElementById("limelight")!;
  const theme = preferred();
  document.documentElement.dataset.theme = theme;
  try {
    mount(root, new Atlas(await unpackAtlas(document.getElementById("limelight-data")!.textContent!)), theme);
    document.documentElement.dataset.ready = "yes";
  } catch (error) {
    root.replaceChildren(el("p", { class: "wait" }, `This page could not be read: ${(error as Error).message}`));
    document.documentElement.dataset.ready = "no";
    throw error;
  }
}

void open();
