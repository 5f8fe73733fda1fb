// The page of an atlas: its panels in their places.

import { el } from "../dom.ts";
import { header, open, themeOf } from "../frame.ts";
import { onHash, readHash, writeHash } from "../link.ts";
import { address, App, fromAddress, opening } from "./app.ts";
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

void open(unpackAtlas, (root, data, theme, status) => {
  const atlas = new Atlas(data);
  const { model } = data;
  const opened = opening(atlas, theme);
  const app = new App(atlas, fromAddress(atlas, readHash(), opened), status, () => writeHash(() => ({ ...address(atlas, app.state, opened), ...themeOf(app.state) })));
  onHash(() => app.set({ ...fromAddress(atlas, readHash(), opened), theme: app.state.theme }));
  const facts = ` · ${plural(model.layers, "layer")} × ${plural(model.heads, "head")}`;
  const head = new HeadPanel(app);
  const grid = new GridPanel(app, () => head.focus());
  const scatter = app.add(new ScatterPanel(app));
  const beside = atlas.layers <= 14; // under a grid that is not tall
  const parts: (Node | false)[] = [
    header(app, ["Atlas of heads · ", el("b", {}, el("bdi", {}, model.name)), facts]),
    lead(app),
    el("div", { class: "two atlas-two" }, el("div", { class: "left" }, app.add(grid), beside && scatter), app.add(head)),
    app.add(new ExamplesPanel(app)),
    !beside && scatter,
    app.add(new TablePanel(app)),
    data.layers.length > 0 && app.add(new LayersPanel(app)),
    notes(app),
    status,
  ];
  root.replaceChildren(...parts.filter((part) => part !== false));
  app.shown();
});
