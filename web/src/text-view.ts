// The text as elements: one for each token, in the text's own spacing.

import { harmless } from "./bidi.ts";
import { el } from "./dom.ts";
import { type Reading, signOf, sliceText } from "./reading.ts";

const LONGEST = 60; // characters of a token that are shown: one that is unknown may be any length

/** One text on the page: its list and the element of each token. */
export interface Line {
  text: number;
  list: HTMLElement;
  spans: HTMLElement[];
}

/** Lay out a text as it was written, every token an element that can be chosen. */
export function lineOf(text: number, reading: Reading): Line {
  const { tokens, text: source, chosen } = reading.data;
  const list = el("div", {
    class: reading.length > 600 ? "tokens many" : "tokens",
    role: "listbox",
    dir: reading.dir,
    "aria-label": "Tokens of the text. Arrow keys move, Enter selects, Escape clears.",
  });
  const spans: HTMLElement[] = [];
  const ofChosen = new Set(chosen.flatMap((word) => reading.units[word]));
  const slice = sliceText(source);
  let end = 0;
  for (let token = 0; token < reading.length; token++) {
    const placed = tokens.end[token] > tokens.start[token] && (!reading.special.has(token) || reading.unknown.has(token));
    const from = Math.max(tokens.start[token], end);
    let written = tokens.text[token];
    if (placed) {
      const whole = slice(from, tokens.end[token]);
      written = whole.trimStart() || whole;
      list.append(harmless(slice(end, from)) + whole.slice(0, whole.length - written.length));
      end = Math.max(end, tokens.end[token]);
    } else if (token > 0) list.append(" ");
    const pieceOf = (other: number) => tokens.word[token] >= 0 && tokens.word[token] === tokens.word[other];
    const classes = [
      "token",
      !placed && "special",
      pieceOf(token - 1) && "joins",
      pieceOf(token + 1) && "joined",
      ofChosen.has(token) && "chosen",
      reading.unknown.has(token) && "unknown",
      !placed && "apart",
    ].filter(Boolean).join(" ");
    const span = el("span", { class: classes, role: "option", tabindex: -1, "data-token": token }, visible(harmless(written)));
    spans.push(span);
    list.append(span);
    if (placed && !written.trim() && /\n/.test(written)) list.append(written.replace(/[^\n]/g, ""));
    else if (!placed) list.append(" ");
  }
  return { text, list, spans };
}

/** What a token shows: a sign for a line break, which follows it, or for a blank; a dot for a further piece. */
function visible(written: string): string {
  if (written.length > LONGEST) return `${written.slice(0, LONGEST)}…`;
  return written === "" ? "·" : (signOf(written) ?? written);
}

/** Scroll a long text so that a token is in view, without scrolling the page. */
export function reveal({ list, spans }: Line, token: number): void {
  const span = spans[token];
  if (span.offsetTop < list.scrollTop || span.offsetTop + span.offsetHeight > list.scrollTop + list.clientHeight)
    list.scrollTop = span.offsetTop - list.clientHeight / 2;
}

/** The number of tokens on the line of a token: how far the up and down keys move. */
export function lineLength(spans: HTMLElement[], token: number): number {
  const top = spans[token].offsetTop;
  let from = token;
  let to = token;
  while (from > 0 && spans[from - 1].offsetTop === top) from--;
  while (to + 1 < spans.length && spans[to + 1].offsetTop === top) to++;
  return to - from + 1;
}

/** The token that an event happened on, if any. */
export function tokenOf(event: Event): number | null {
  const target = (event.target as HTMLElement).closest?.<HTMLElement>("[data-token]");
  return target ? Number(target.dataset.token) : null;
}
