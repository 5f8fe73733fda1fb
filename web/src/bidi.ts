// Texts that are written from right to left: the direction of a text, and names that keep theirs to themselves.

const RIGHT_TO_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]/u;
const LETTER = /\p{L}/u;
const CONTROLS = /[\u202a-\u202e\u2066-\u2069\u200e\u200f\u061c]/;

/** The direction in which most letters of a text are written. */
export function directionOf(text: string): "ltr" | "rtl" {
  let balance = 0;
  for (const character of text) if (LETTER.test(character)) balance += RIGHT_TO_LEFT.test(character) ? 1 : -1;
  return balance > 0 ? "rtl" : "ltr";
}

/** Whether a piece of text may change the order of what stands beside it. */
const reorders = (text: string): boolean => CONTROLS.test(text);

/** A text whose bidirectional controls are written out, so that they act on nothing. */
export const harmless = (text: string): string =>
  reorders(text) ? text.replace(new RegExp(CONTROLS, "g"), (c) => `<U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}>`) : text;

/** A name for plain text (labels, notes, figures): in an isolate where its direction could spread to its neighbours. */
export function name(text: string): string {
  const plain = harmless(text);
  return RIGHT_TO_LEFT.test(plain) ? `\u2068${plain}\u2069` : plain;
}

/** One name looks at another, from left to right whatever they are. */
export const arrow = (query: string, key: string): string => `${name(query)} → ${name(key)}`;
