// What the text panel says of the state: which token is followed, its weights, and sentences about them.

import { type App, show, times } from "./app.ts";
import { el } from "./dom.ts";
import type { Row } from "./reading.ts";

/** The token that is followed in a text: the selected one, or in the other text the same word. */
export function followed(app: App, text: number): number | null {
  const { token, text: active } = app.state;
  if (token === null || text === active) return token;
  const unit = app.reading.unitOf[token];
  const pair = app.page.comparison?.pairs.find((pair) => pair[active] === unit);
  return pair ? app.readings[text].units[pair[text]][0] : null;
}

/** The weights between the followed token of a text and its other tokens; null if none is followed. */
export function weightsOf(app: App, text: number): Row | null {
  const { direction, scope, layer, head } = app.state;
  const token = followed(app, text);
  return token === null ? null : app.readings[text].row(token, direction, scope, layer, head);
}

/** The values that shade a text: weights, or without a followed token what each token receives. */
export function valuesOf(app: App, text: number): number[] {
  const reading = app.readings[text];
  const weights = weightsOf(app, text);
  const received = app.state.token === null;
  return Array.from({ length: reading.length }, (_, token) =>
    weights ? weights[token] : received ? reading.receivedTimesEven(token) : NaN,
  );
}

/** Whether a token is left out of the shading. */
export const isBlank = (app: App, text: number, token: number): boolean =>
  app.state.hide && app.readings[text].apart.has(token);

/** The upper end of the colour scale of some texts. */
export function highOf(app: App, texts: number[], values: number[][]): number {
  let high = 0;
  texts.forEach((text, i) =>
    values[i].forEach((value, token) => {
      if (value > high && !isBlank(app, text, token)) high = value;
    }),
  );
  return app.state.token === null ? Math.min(high, 4) : high || 1;
}

/** Lines about a token, for the tip and for screen readers. */
export function describe(app: App, text: number, token: number): string[] {
  const reading = app.readings[text];
  const from = followed(app, text);
  const name = `${reading.spelled(token)} · token ${token}`;
  const piece = reading.data.tokens.text[token];
  const lines = [piece === reading.spelled(token) ? name : `${name} · ${piece}`];
  const weights = weightsOf(app, text);
  if (weights === null || from === null)
    return [...lines, `receives ${reading.receivedTimesEven(token).toFixed(2)}× an even share`];
  const [query, key] = app.state.direction === "from" ? [from, token] : [token, from];
  if (!reading.sees(query, key)) return [...lines, "not visible to it"];
  const even = 1 / reading.visible(query);
  const value = weights[token];
  return [
    ...lines,
    `${reading.spelled(query)} → ${reading.spelled(key)}`,
    Number.isNaN(value)
      ? "not among the strongest relations kept"
      : `${show(value)}  (even ${show(even)}, ${times(value, even)})`,
  ];
}

/** The caption of the panel. */
export function sentence(app: App): (Node | string)[] {
  const { state, reading } = app;
  if (state.token === null)
    return [
      "Shaded by the attention each token receives over all layers and heads, as a multiple of what it would get " +
        "if every token spread its attention evenly. Click a token to follow it.",
    ];
  const name = el("b", {}, reading.spelled(state.token));
  const where = placeOf(app);
  const kept = reading.exact ? "" : " Unshaded: not among the strongest relations kept for a text of this length.";
  const parts: (Node | string)[] =
    state.direction === "from"
      ? ["Where ", name, ` looks: the share of its attention on each token, ${where}.`]
      : ["Who looks at ", name, `: the share of each token’s attention on it, ${where}.`];
  return [...parts, ...pairSentence(app, state.token), kept];
}

/** Which heads the weights are of. */
function placeOf({ state, reading }: App): string {
  if (state.scope === "head") return `head ${state.layer}.${state.head}`;
  if (state.scope === "all") return "the strongest of all heads";
  return `layer ${state.layer}, ${reading.exact ? "mean over its heads" : "strongest of its heads"}`;
}

/** The weight between the selected token and its partner, if one was picked. */
function pairSentence({ state, reading }: App, token: number): (Node | string)[] {
  const { other, layer, head } = state;
  if (other === null || !reading.exact) return [];
  const [query, key] = state.direction === "from" ? [token, other] : [other, token];
  const value = reading.weight(layer, head, query, key);
  return [
    " ",
    el("b", {}, `${reading.spelled(query)} → ${reading.spelled(key)} ${show(value)}`),
    ` in head ${layer}.${head} (even: ${show(1 / reading.visible(query))}).`,
  ];
}
