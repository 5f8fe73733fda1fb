// The measures as a menu, in their groups.

import { el } from "../dom.ts";
import type { App } from "./app.ts";

export function measureMenu(app: App, name: string, current: number, pick: (measure: number) => void): HTMLElement {
  const groups = new Map<string, HTMLOptGroupElement>();
  const menu = el("select", { "data-focus": `menu ${name}` });
  app.atlas.data.measures.forEach((measure, at) => {
    let group = groups.get(measure.group);
    if (!group) {
      groups.set(measure.group, (group = el("optgroup", { label: measure.group })));
      menu.append(group);
    }
    group.append(el("option", { value: at }, measure.label));
  });
  menu.value = String(current);
  menu.addEventListener("change", () => pick(Number(menu.value)));
  return el("label", { class: "menu" }, el("span", { class: "quiet" }, name), menu);
}
