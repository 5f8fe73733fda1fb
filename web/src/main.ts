// The page of a text, a picture, or an encoder-decoder: its panels in their places.

import { address, fromAddress } from "./address.ts";
import { App, opening, type Panel } from "./app.ts";
import { unpackPage } from "./data.ts";
import { el } from "./dom.ts";
import { footer, header, open, themeOf } from "./frame.ts";
import { GridPanel } from "./grid.ts";
import { HeadPanel } from "./head.ts";
import { factsPanel } from "./head-facts.ts";
import { leadPanel } from "./lead.ts";
import { onHash, readHash, writeHash } from "./link.ts";
import { pathPanel } from "./path.ts";
import { picturePanels } from "./pictures/mount.ts";
import { RelationsPanel } from "./relations.ts";
import { SourcePage } from "./sources/mount.ts";
import { TextPanel } from "./text.ts";
import { WritingPanel } from "./writing.ts";

function top(app: App): HTMLElement {
  const { model, pictures } = app.page;
  const part = pictures ? "patch" : "token";
  const sees = model.kind === "decoder" ? "each token sees itself and what came before" : `each ${part} sees every ${part}`;
  const tokens = app.page.readings.map((reading) => reading.tokens.text.length.toLocaleString("en")).join(" and ");
  const facts = [el("b", {}, model.name), ` · ${model.layers} layers × ${model.heads} heads · ${tokens} tokens · ${sees}`];
  return header(app, facts, app.page.readings.some((reading) => reading.tokens.apart.length > 0) && hideBox(app));
}

/** The box that leaves out special tokens and sinks. */
function hideBox(app: App): HTMLElement {
  const box = el("input", { type: "checkbox" });
  const update = () => void (box.checked = app.state.hide);
  box.addEventListener("change", () => app.set({ hide: box.checked }));
  update();
  return app.add({ element: el("label", { class: "check" }, box, "Hide special tokens"), update });
}

/** The panels in their places, with one `above` the text; the large head over two texts takes the whole width. */
function panels(app: App, above?: Panel): HTMLElement[] {
  if (app.page.pictures) return picturePanels(app, app.page.pictures);
  const compared = app.readings.length > 1;
  const [lead, text, relations] = [leadPanel(app), new TextPanel(app), new RelationsPanel(app)].map((panel) => app.add(panel));
  const [grid, head, facts, path] = [new GridPanel(app), new HeadPanel(app), factsPanel(app), pathPanel(app)].map((panel) => app.add(panel));
  const two = (left: HTMLElement[], right: HTMLElement[]) =>
    el("div", { class: "two" }, el("div", { class: "side" }, ...left), el("div", { class: "side" }, ...right));
  const flat = app.page.model.layers <= 12;
  const middle = compared ? [two([grid], [facts]), head] : [flat ? two([grid, facts], [head]) : two([grid], [head, facts])];
  const writing = app.page.writing ? [app.add(new WritingPanel(app, app.page.writing))] : [];
  return [lead, ...(above ? [app.add(above)] : []), text, ...writing, relations, ...middle, path];
}

void open(unpackPage, (root, page, theme, status) => {
  if (page.cross) return new SourcePage(page, page.cross, theme, panels, status).mount(root);
  const state = { ...opening(page, theme), ...fromAddress(readHash(), page) };
  const app = new App(page, state, status, () => writeHash(() => ({ ...address(app.state), ...themeOf(app.state) })));
  onHash(() => app.set(fromAddress(readHash(), page)));
  root.replaceChildren(top(app), ...panels(app), footer(page.notes), status);
  app.shown();
});
