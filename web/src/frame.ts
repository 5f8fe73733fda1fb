// What stands around the panels of every page: its header with the theme, how to read it, and how it opens.

import type { Theme } from "./colour.ts";
import { el } from "./dom.ts";
import { readHash } from "./link.ts";
import type { PanelOf } from "./store.ts";

interface Themed {
  readonly state: { theme: Theme };
  set(patch: { theme: Theme }): void;
  add(panel: PanelOf<"theme">): HTMLElement;
}

let chosen = false; // whether the user, or a link, chose the theme

/** The theme that a link or the browser asks for. */
function preferred(): Theme {
  const given = readHash().get("theme") ?? new URLSearchParams(location.search).get("theme");
  chosen = given === "dark" || given === "light";
  if (given === "dark" || given === "light") return given;
  return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

/** The theme as the address has it: if it was chosen. */
export const themeOf = (state: { theme: Theme }): { theme: string } => ({ theme: chosen ? state.theme : "" });

/** The header of a page: what is shown, and controls, of which the last changes the theme. Prints are light. */
export function header(app: Themed, facts: (Node | string)[], ...controls: (Node | false)[]): HTMLElement {
  const change = () => {
    chosen = true;
    app.set({ theme: app.state.theme === "dark" ? "light" : "dark" });
  };
  const button = el("button", { type: "button", class: "plain", on: { click: change } });
  const update = () => {
    document.documentElement.dataset.theme = app.state.theme;
    button.textContent = app.state.theme === "dark" ? "Light" : "Dark";
  };
  update();
  let before: Theme = "light";
  addEventListener("beforeprint", () => {
    before = app.state.theme;
    app.set({ theme: "light" });
  });
  addEventListener("afterprint", () => app.set({ theme: before }));
  const element = el(
    "header",
    {},
    el("div", { class: "brand" }, el("span", { class: "lamp", "aria-hidden": "true" }), el("h1", {}, "Limelight"), el("p", {}, ...facts)),
    el("div", { class: "controls" }, ...controls, button),
  );
  return app.add({ element, update });
}

/** The notes of a page. */
export const footer = (notes: string[]): HTMLElement =>
  el("footer", {}, el("h2", {}, "How to read this"), el("ul", {}, ...notes.map((note) => el("li", {}, note))));

/** Open a page: unpack the data that stands in it, and lay it out; `mount` gets an element for messages, too. */
export async function open<Data>(
  unpack: (json: string) => Promise<Data>,
  mount: (root: HTMLElement, data: Data, theme: Theme, status: HTMLElement) => void,
): Promise<void> {
  const root = document.getElementById("limelight")!;
  const theme = preferred();
  document.documentElement.dataset.theme = theme;
  try {
    const data = await unpack(document.getElementById("limelight-data")!.textContent!);
    mount(root, data, theme, el("div", { class: "unseen", role: "status", "aria-live": "polite" }));
    document.documentElement.dataset.ready = "yes";
  } catch (error) {
    root.replaceChildren(el("p", { class: "wait" }, `This page could not be read: ${(error as Error).message}`));
    document.documentElement.dataset.ready = "no";
    throw error;
  }
}
