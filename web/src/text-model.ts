// What the text panel says of the state: which token is followed, its weights, and sentences about them.

import { type App, show, times } from "./app.ts";
import { arrow, name } from "./bidi.ts";
import type { Cell, Sheet } from "./save.ts";
import { el } from "./dom.ts";
import { range, type Row } from "./reading.ts";

export const MOST_RECEIVED = 4; // times an even share that fill the bar of a token

/** The token that is followed in a text: the selected one, or in the other text the same word. */
export function followed(app: App, text: number): number | null {
  const { token, text: active } = app.state;
  if (token === null || text === active) return token;
  const unit = app.partner(app.reading.unitOf[token], text);
  return unit === null ? null : app.readings[text].units[unit][0];
}

/** The partner that was picked, in a text: in the other text the same word. */
export function paired(app: App, text: number): number | null {
  const { other, text: active } = app.state;
  if (other === null || text === active) return other;
  const unit = app.partner(app.reading.unitOf[other], text);
  return unit === null ? null : app.readings[text].units[unit][0];
}

/** The weights between the followed token of a text and its other tokens; null if none is followed. */
export function weightsOf(app: App, text: number): Row | null {
  const { direction, scope, layer, head } = app.state;
  const token = followed(app, text);
  return token === null ? null : app.readings[text].row(token, direction, scope, layer, head);
}

/** Whether a token is left out of the shading. */
export const isBlank = (app: App, text: number, token: number): boolean =>
  app.state.hide && app.readings[text].apart.has(token);

/** Lines about a token, for the tip and for screen readers. */
export function describe(app: App, text: number, token: number, weights = weightsOf(app, text)): string[] {
  const reading = app.readings[text];
  const from = followed(app, text);
  const piece = reading.data.tokens.text[token];
  const number = reading.wordNumber(reading.unitOf[token]);
  const word = number === null ? "" : ` · word ${number.toLocaleString("en")}`;
  const shown = piece === reading.spelled(token) ? "" : ` · ${name(piece)}`;
  const lines = [`${name(reading.spelled(token))} · token ${token.toLocaleString("en")}${word}${shown}`];
  if (reading.unknown.has(token)) lines.push("unknown: not in the model’s vocabulary");
  if (weights === null || from === null)
    return [...lines, `receives ${reading.receivedTimesEven(token).toFixed(2)}× an even share`];
  const [query, key] = app.state.direction === "from" ? [from, token] : [token, from];
  if (!reading.sees(query, key)) return [...lines, "not visible to it"];
  const even = 1 / reading.visible(query);
  const value = weights[token];
  return [
    ...lines,
    arrow(reading.spelled(query), reading.spelled(key)),
    Number.isNaN(value)
      ? "not among the strongest relations kept"
      : `${show(value)}  (even ${show(even)}, ${times(value, even)})`,
  ];
}

/** The caption of the panel. */
export function sentence(app: App): (Node | string)[] {
  const { state, reading } = app;
  if (state.token === null)
    return [`Bar: attention the token receives over all layers and heads, up to ${MOST_RECEIVED} times an even share. Click a word to follow it.`];
  const what = el("bdi", { class: "strong" }, reading.spelled(state.token));
  const kept = reading.exact ? "" : " Unshaded: not among the strongest relations kept for a text of this length.";
  return state.direction === "from"
    ? ["Where ", what, `${position(app)} looks: the share of its attention on each token, ${placeOf(app)}.${kept}`]
    : ["Who looks at ", what, `${position(app)}: the share of each token’s attention on it, ${placeOf(app)}.${kept}`];
}

/** Where the selected word stands, in a text in which one has to look for it. */
function position({ state, reading }: App): string {
  const number = state.token === null ? null : reading.wordNumber(reading.unitOf[state.token]);
  const count = reading.data.words.text.length;
  return number === null || count < 30 ? "" : ` (word ${number.toLocaleString("en")} of ${count.toLocaleString("en")})`;
}

/** Which heads the weights are of. */
export function placeOf({ state, reading }: App): string {
  if (state.scope === "head") return `head ${state.layer}.${state.head}`;
  if (state.scope === "all") return "the strongest of all heads";
  return `layer ${state.layer}, ${reading.exact ? "mean over its heads" : "strongest of its heads"}`;
}

/** The texts as a table: a row for each token. */
export function sheet(app: App): Sheet {
  const rows = app.readings.flatMap((reading, text): Cell[][] => {
    const weights = weightsOf(app, text);
    const from = followed(app, text);
    return range(reading.length).map((token) => {
      const query = app.state.direction === "from" ? from : token;
      return [
        text,
        token,
        reading.data.tokens.text[token],
        reading.unitText[reading.unitOf[token]],
        weights ? weights[token] : null,
        query === null ? null : 1 / reading.visible(query),
        reading.receivedTimesEven(token),
      ];
    });
  });
  const word = app.state.token === null ? "" : ` ${app.state.direction} ${app.reading.spelled(app.state.token)}, ${placeOf(app)}`;
  return { header: ["text", "index", "token", "word", `weight${word}`, "even", "received (times even)"], rows };
}

/** The tokens of the words that match a search, by where they begin: words that follow one another, each by its start. */
export function search(words: string[], units: number[][], wanted: string): number[] {
  const parts = wanted.toLowerCase().split(/\s+/).filter(Boolean);
  if (!parts.length) return [];
  const lower = words.map((word) => word.toLowerCase());
  const last = parts.length - 1;
  return range(Math.max(0, words.length - last)).flatMap((at) =>
    parts.every((part, n) => (n < last ? lower[at + n] === part : lower[at + n].startsWith(part))) ? [units[at][0]] : [],
  );
}
