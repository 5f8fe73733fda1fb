// The panels of a picture.

import type { App } from "../app.ts";
import type { Page } from "../data.ts";
import { el } from "../dom.ts";
import { factsPanel } from "../head-facts.ts";
import { HeadPanel } from "../head.ts";
import { pathPanel } from "../path.ts";
import { Picture } from "./data.ts";
import { PictureHeadsPanel } from "./heads.ts";
import { pictureLead } from "./lead.ts";
import { PicturePanel } from "./panel.ts";

/** The panels in their places: the picture beside all heads, then the selected head by itself. */
export function picturePanels(app: App, data: NonNullable<Page["pictures"]>): HTMLElement[] {
  const { layers, heads } = app.page.model;
  const pictures = data.map((one) => new Picture(one, layers, heads));
  const [lead, picture, all, head, facts, path] = [
    pictureLead(app, pictures), new PicturePanel(app, pictures), new PictureHeadsPanel(app, pictures), new HeadPanel(app), factsPanel(app), pathPanel(app),
  ].map((panel) => app.add(panel));
  const two = (left: HTMLElement[], right: HTMLElement[]) => el("div", { class: "two" }, el("div", { class: "side" }, ...left), el("div", { class: "side" }, ...right));
  return [lead, ...(pictures.length > 1 ? [picture, all] : [two([picture], [all])]), two([facts, path], [head])];
}
