// Open the page: unpack the data that stands in it, and lay out the panels.

import { App, opening } from "./app.ts";
import type { Theme } from "./colour.ts";
import { unpackPage } from "./data.ts";
import { el } from "./dom.ts";
import { GridPanel } from "./grid.ts";
import { HeadPanel } from "./head.ts";
import { pathPanel } from "./path.ts";
import { RelationsPanel } from "./relations.ts";
import { TextPanel } from "./text.ts";
import { WritingPanel } from "./writing.ts";

const requested = new URLSearchParams(location.search).get("theme");
const preferred = (): Theme =>
  requested === "dark" || requested === "light" ? requested : matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";

function header(app: App): HTMLElement {
  const { model, readings } = app.page;
  const theme = el("button", { type: "button", class: "plain" });
  const hide = el("input", { type: "checkbox" });
  const name = () => (theme.textContent = app.state.theme === "dark" ? "Light" : "Dark");
  name();
  theme.addEventListener("click", () => {
    const next: Theme = app.state.theme === "dark" ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    app.set({ theme: next });
    name();
  });
  hide.addEventListener("change", () => app.set({ hide: hide.checked }));
  const sees = model.kind === "decoder" ? "each token sees itself and what came before" : "each token sees every token";
  const tokens = readings.map((reading) => reading.tokens.text.length.toLocaleString("en")).join(" and ");
  const anyApart = readings.some((reading) => reading.tokens.apart.length > 0);
  return el(
    "header",
    {},
    el("div", { class: "brand" }, el("span", { class: "lamp", "aria-hidden": "true" }), el("h1", {}, "Limelight"),
      el("p", {}, el("b", {}, model.name), ` · ${model.layers} layers × ${model.heads} heads · ${tokens} tokens · ${sees}`)),
    el("div", { class: "controls" }, anyApart && el("label", { class: "check" }, hide, "Hide special tokens"), theme),
  );
}

function footer(app: App): HTMLElement {
  return el(
    "footer",
    {},
    el("h2", {}, "How to read this"),
    el("ul", {}, ...app.page.notes.map((note) => el("li", {}, note))),
  );
}

async function open(): Promise<void> {
  const root = document.getElementById("limelight")!;
  const theme = preferred();
  document.documentElement.dataset.theme = theme;
  try {
    const page = await unpackPage(document.getElementById("limelight-data")!.textContent!);
    const status = el("div", { class: "unseen", role: "status", "aria-live": "polite" });
    const app = new App(page, opening(page, theme), status);
    const lead = el(
      "p",
      { class: "lead" },
      "What each token looked at while the model read this text. ",
      el("span", { class: "quiet" }, "A weight says where a head took its values from; it is not an explanation of what the model does."),
    );
    const compared = page.comparison !== null; // three charts then, for which one column is too narrow
    const path = pathPanel(app);
    const apart = compared && page.model.layers <= 12; // beside a taller grid the numbers stay with the head
    const head = new HeadPanel(app, apart);
    root.replaceChildren(
      header(app),
      lead,
      app.add(new TextPanel(app)),
      ...(page.writing ? [app.add(new WritingPanel(app, page.writing))] : []),
      app.add(new RelationsPanel(app)),
      el(
        "div",
        { class: "two" },
        el("div", { class: "left" }, app.add(new GridPanel(app)), compared ? apart && head.numbers : app.add(path)),
        app.add(head),
      ),
      ...(compared ? [app.add(path)] : []),
      footer(app),
      status,
    );
    app.shown();
    document.documentElement.dataset.ready = "yes";
  } catch (error) {
    root.replaceChildren(el("p", { class: "wait" }, `This page could not be read: ${(error as Error).message}`));
    document.documentElement.dataset.ready = "no";
    throw error;
  }
}

void open();
