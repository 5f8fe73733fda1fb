// The one note that follows the pointer.

import { el } from "./dom.ts";

let note: HTMLElement | null = null;

export function tip(x: number, y: number, lines: string[]): void {
  if (!note) {
    note = el("div", { class: "tip", "aria-hidden": "true" });
    document.body.append(note);
  }
  note.replaceChildren(...lines.map((line, i) => el("div", { class: i ? "" : "tip-first" }, line)));
  note.hidden = false;
  const { width, height } = note.getBoundingClientRect();
  const left = Math.min(Math.max(8, x + 14), document.documentElement.clientWidth - width - 8);
  const top = y + 18 + height > window.innerHeight ? y - height - 12 : y + 18;
  note.style.setProperty("transform", `translate(${Math.round(left)}px, ${Math.round(top)}px)`);
}

export function hideTip(): void {
  if (note) note.hidden = true;
}
