// The words of one side as elements that can be chosen, in the text's own spacing.

import { harmless } from "../bidi.ts";
import { el } from "../dom.ts";
import { sliceText } from "../reading.ts";
import type { Side } from "./data.ts";

const LONGEST = 60;

export interface WordList {
  list: HTMLElement;
  spans: HTMLElement[];
}

export interface Chosen {
  label: string;
  pick: (at: number | null) => void;
  preview: (at: number | null) => void;
  describe: (at: number) => string[];
  current: () => number | null;
}

/** Lay out a side; `pick` gets the word that is clicked or entered, or null when it is let go. */
export function wordList(side: Side, chosen: Chosen): WordList {
  const list = el("div", { class: "tokens cross-words", role: "listbox", dir: side.dir, "aria-label": `${chosen.label}. Arrow keys move, Enter selects, Escape clears.` });
  const slice = sliceText(side.text);
  let end = 0;
  const spans = side.units.map((text, at) => {
    const placed = side.end[at] > side.start[at];
    const from = Math.max(end, side.start[at]);
    const written = placed ? slice(from, side.end[at]) : text;
    if (placed) {
      list.append(harmless(slice(end, from)));
      end = Math.max(end, side.end[at]);
    } else list.append(" ");
    const shown = written.trim() || text;
    const classes = side.special.has(at) || !placed ? "token special apart" : "token";
    const span = el("span", { class: classes, role: "option", tabindex: -1, dir: side.special.has(at) ? "ltr" : null, "data-at": at }, harmless(shown.length > LONGEST ? `${shown.slice(0, LONGEST)}…` : shown));
    list.append(span);
    if (!placed) list.append(" ");
    return span;
  });
  listen(list, spans, side.dir, chosen);
  return { list, spans };
}

function listen(list: HTMLElement, spans: HTMLElement[], dir: string, { pick, preview, describe, current }: Chosen): void {
  const at = (event: Event): number | null => {
    const found = (event.target as HTMLElement).closest?.<HTMLElement>("[data-at]");
    return found ? Number(found.dataset.at) : null;
  };
  list.addEventListener("click", (event) => {
    const word = at(event);
    if (word !== null) pick(word === current() ? null : word);
  });
  list.addEventListener("pointerover", (event) => {
    if (event.pointerType !== "touch") preview(at(event));
  });
  list.addEventListener("pointerleave", () => preview(null));
  list.addEventListener("keydown", (event) => {
    const word = at(event);
    if (word === null) return;
    if (event.key === "Enter" || event.key === " ") pick(word);
    else if (event.key === "Escape") pick(null);
    else {
      const forward = dir === "rtl" ? "ArrowLeft" : "ArrowRight";
      const step = event.key === forward || event.key === "ArrowDown" ? 1 : event.key.startsWith("Arrow") ? -1 : 0;
      const next = event.key === "Home" ? 0 : event.key === "End" ? spans.length - 1 : word + step;
      if (next === word || !spans[next]) return;
      spans[word].tabIndex = -1;
      spans[next].tabIndex = 0;
      spans[next].focus();
      event.preventDefault();
      return;
    }
    event.preventDefault();
  });
  list.addEventListener("focusin", (event) => {
    const word = at(event);
    if (word === null || !(event.target as HTMLElement).matches(":focus-visible")) return;
    preview(word);
    spans[word].setAttribute("aria-label", describe(word).join(", "));
  });
  list.addEventListener("focusout", () => preview(null));
}

/** Keep one word of a list in the order of the tab key, and say which is selected. */
export function mark({ spans }: WordList, selected: number | null): void {
  const stop = selected ?? 0;
  spans.forEach((span, at) => {
    span.tabIndex = at === stop ? 0 : -1;
    span.setAttribute("aria-selected", String(at === selected));
    span.classList.toggle("selected", at === selected);
  });
}
