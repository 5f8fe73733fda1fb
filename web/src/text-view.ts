// The text as elements: one for each token, in the text's own spacing. Of a long text only what is near the view.

import { harmless } from "./bidi.ts";
import { el } from "./dom.ts";
import { type Reading, signOf, sliceText } from "./reading.ts";

const LONGEST = 60; // characters of a token that are shown: one that is unknown may be any length
const WHOLE = 1500; // tokens of a text that is laid out as a whole
const [LEAST, MOST] = [100, 300]; // tokens of a part of a longer one: it ends with a line if it can, else with a word
const NEAR = 700; // pixels around the view that are laid out

/** A part of the text: laid out, it has an element for each token; else it has its height alone. */
interface Part {
  first: number;
  last: number; // one behind
  end: number; // characters of the text before it
  element: HTMLElement;
  spans: HTMLElement[] | null;
}

/** Lays a text out as it was written, every token an element that can be chosen. */
export class Line {
  readonly list: HTMLElement;
  private readonly parts: Part[];
  private readonly slice: (start: number, end: number) => string;
  private readonly ofChosen: Set<number>;
  private pinned: number | null = null;

  /** `dress` gives the element of a token its colours and marks, when it is laid out and with every `redress`. */
  constructor(
    private readonly reading: Reading,
    private readonly dress: (span: HTMLElement, token: number) => void,
  ) {
    this.list = el("div", {
      class: reading.length > 600 ? "tokens many" : "tokens",
      role: "listbox",
      dir: reading.dir,
      "aria-label": "Tokens of the text. Arrow keys move, Enter selects, Escape clears.",
    });
    this.slice = sliceText(reading.data.text);
    this.ofChosen = new Set(reading.data.chosen.flatMap((word) => reading.units[word]));
    this.parts = this.cut();
    if (this.parts.length === 1) this.parts[0].element = this.list;
    else this.list.append(...this.parts.map((part) => part.element));
  }

  /** Lay out what is to be seen, once the list is on the page. */
  shown(): void {
    if (this.parts.length === 1) return this.fill(this.parts[0]);
    const letters = this.list.clientWidth / 7.6;
    for (const part of this.parts) {
      const lines = this.slice(part.end, this.reading.data.tokens.end[part.last - 1]).split("\n");
      part.element.style.setProperty("height", `${28 * lines.reduce((sum, line) => sum + Math.max(1, Math.ceil(line.length / letters)), 0)}px`);
    }
    const byElement = new Map(this.parts.map((part) => [part.element, part]));
    const near = new IntersectionObserver(
      (entries) => {
        for (const { target, isIntersecting } of entries) {
          const part = byElement.get(target as HTMLElement)!;
          if (isIntersecting) this.fill(part);
          else this.empty(part);
        }
      },
      { root: this.list, rootMargin: `${NEAR}px 0px` },
    );
    for (const part of this.parts) near.observe(part.element);
    addEventListener("beforeprint", () => this.parts.forEach((part) => this.fill(part)));
    addEventListener("afterprint", () => {
      near.disconnect(); // observed anew, each part is reported again
      for (const part of this.parts) near.observe(part.element);
    });
  }

  /** The element of a token, which is laid out if it is not. */
  span(token: number): HTMLElement {
    const part = this.partOf(token);
    this.fill(part);
    return part.spans![token - part.first];
  }

  /** Give the elements that are laid out their colours and marks again; `pinned` stays laid out. */
  redress(pinned: number): void {
    this.pinned = pinned;
    for (const { first, spans } of this.parts) spans?.forEach((span, at) => this.dress(span, first + at));
    if (this.list.isConnected) this.fill(this.partOf(pinned));
  }

  /** Scroll a long text so that a token is in view, without scrolling the page. */
  reveal(token: number): void {
    const { list } = this;
    const span = this.span(token);
    if (span.offsetTop < list.scrollTop || span.offsetTop + span.offsetHeight > list.scrollTop + list.clientHeight)
      list.scrollTop = span.offsetTop - list.clientHeight / 2;
  }

  /** The number of tokens on the line of a token: how far the up and down keys move. */
  lineLength(token: number): number {
    const { first, spans } = this.partOf(token);
    const at = token - first;
    if (!spans) return 1;
    const top = spans[at].offsetTop;
    let [from, to] = [at, at];
    while (from > 0 && spans[from - 1].offsetTop === top) from--;
    while (to + 1 < spans.length && spans[to + 1].offsetTop === top) to++;
    return to - from + 1;
  }

  /** The first token below a height of the list. */
  tokenAt(top: number): number {
    const below = (count: number, offset: (at: number) => number) => {
      let [low, high] = [0, count];
      while (low < high) {
        const middle = (low + high) >> 1;
        if (offset(middle) < top) low = middle + 1;
        else high = middle;
      }
      return low;
    };
    const single = this.parts.length === 1;
    const part = this.parts[single ? 0 : Math.max(0, below(this.parts.length, (at) => this.parts[at].element.offsetTop) - 1)];
    const { first, last, element, spans } = part;
    if (spans) return first + below(spans.length, (at) => spans[at].offsetTop);
    return single ? 0 : Math.min(last, first + Math.round(((last - first) * (top - element.offsetTop)) / Math.max(1, element.offsetHeight)));
  }

  /** The first and last token in view, if the list does not show all of them. */
  get inView(): [number, number] | null {
    const { list, reading } = this;
    if (list.scrollHeight <= list.clientHeight) return null;
    const half = this.span(this.tokenAt(list.scrollTop)).offsetHeight / 2;
    const [top, bottom] = [list.scrollTop - half, list.scrollTop + list.clientHeight - half];
    return [this.tokenAt(top), Math.min(reading.length, this.tokenAt(bottom)) - 1];
  }

  private partOf(token: number): Part {
    let [low, high] = [0, this.parts.length - 1];
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.parts[middle].first <= token) low = middle;
      else high = middle - 1;
    }
    return this.parts[low];
  }

  /** Cut a long text into parts. */
  private cut(): Part[] {
    const { tokens } = this.reading.data;
    const parts: Part[] = [];
    const add = (first: number, last: number, end: number) => parts.push({ first, last, end, element: el("div", { role: "presentation" }), spans: null });
    let [first, before, end] = [0, 0, 0];
    for (let token = 1; token < this.reading.length && this.reading.length > WHOLE; token++) {
      end = Math.max(end, tokens.end[token - 1]);
      const count = token - first;
      const line = count >= LEAST && this.slice(tokens.start[token - 1], Math.max(end, tokens.start[token])).includes("\n");
      const word = count >= MOST && (tokens.word[token] < 0 || tokens.word[token] !== tokens.word[token - 1]);
      if (!line && !word && count < 2 * MOST) continue;
      add(first, token, before);
      [first, before] = [token, end];
    }
    add(first, this.reading.length, before);
    return parts;
  }

  private fill(part: Part): void {
    if (part.spans) return;
    const { reading, slice } = this;
    const { tokens } = reading.data;
    const nodes: (Node | string)[] = [];
    part.spans = [];
    let end = part.end;
    for (let token = part.first; token < part.last; token++) {
      const placed = tokens.end[token] > tokens.start[token] && (!reading.special.has(token) || reading.unknown.has(token));
      const from = Math.max(tokens.start[token], end);
      let written = tokens.text[token];
      if (placed) {
        const whole = slice(from, tokens.end[token]);
        written = whole.trimStart() || whole;
        const gap = harmless(slice(end, from)) + whole.slice(0, whole.length - written.length);
        nodes.push(token === part.first && token > 0 ? gap.replace("\n", "") : gap); // the part begins a line itself
        end = Math.max(end, tokens.end[token]);
      } else if (token > 0) nodes.push(" ");
      const span = this.spanOf(token, placed, written);
      part.spans.push(span);
      nodes.push(span);
      if (placed && !written.trim() && /\n/.test(written)) nodes.push(written.replace(/[^\n]/g, ""));
      else if (!placed) nodes.push(" ");
    }
    part.element.style.removeProperty("height");
    part.element.append(...nodes.filter((node) => node !== ""));
    part.spans.forEach((span, at) => this.dress(span, part.first + at));
  }

  private spanOf(token: number, placed: boolean, written: string): HTMLElement {
    const { reading } = this;
    const { tokens } = reading.data;
    const pieceOf = (other: number) => tokens.word[token] >= 0 && tokens.word[token] === tokens.word[other];
    const classes = [
      "token",
      !placed && "special",
      pieceOf(token - 1) && "joins",
      pieceOf(token + 1) && "joined",
      this.ofChosen.has(token) && "chosen",
      reading.unknown.has(token) && "unknown",
      !placed && "apart",
    ].filter(Boolean).join(" ");
    const place = this.parts?.length === 1 ? {} : { "aria-posinset": token + 1, "aria-setsize": reading.length };
    return el("span", { class: classes, role: "option", tabindex: -1, "data-token": token, ...place }, visible(harmless(written)));
  }

  /** Keep the height of a part alone, unless the focus or the pinned token is in it. */
  private empty(part: Part): void {
    const { element, first, last } = part;
    const pinned = this.pinned !== null && this.pinned >= first && this.pinned < last;
    if (!part.spans || pinned || element.contains(document.activeElement)) return;
    element.style.setProperty("height", `${element.offsetHeight}px`);
    element.replaceChildren();
    part.spans = null;
  }
}

/** What a token shows: a sign for a line break, which follows it, or for a blank; a dot for a further piece. */
function visible(written: string): string {
  if (written.length > LONGEST) return `${written.slice(0, LONGEST)}…`;
  return written === "" ? "·" : (signOf(written) ?? written);
}

/** The token that an event happened on, if any. */
export function tokenOf(event: Event): number | null {
  const target = (event.target as HTMLElement).closest?.<HTMLElement>("[data-token]");
  return target ? Number(target.dataset.token) : null;
}
