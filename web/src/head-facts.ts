// The numbers of a head.

import { type App, show } from "./app.ts";
import { el } from "./dom.ts";

/** What a head does on this text, as a table: means over its tokens beside an even spread. */
export function facts(app: App, place: number): HTMLElement {
  const { heads, even, causal } = app.reading.data;
  const share = show(even.share);
  const rows: [string, string, string][] = [
    ["on the strongest key", show(heads.strongest[place]), share],
    ["on the previous token", show(heads.previous[place]), share],
    ["on the token itself", show(heads.own[place]), share],
    ...(causal ? [] : ([["on the next token", show(heads.next[place]), share]] as [string, string, string][])),
    ["on special tokens and sinks", show(heads.apart[place]), ""],
    ["distance, tokens", show(heads.distance[place]), show(even.distance)],
    ["entropy, nats", show(heads.entropy[place]), show(even.entropy)],
  ];
  return el(
    "table",
    {},
    el("caption", {}, `Mean over ${app.reading.length.toLocaleString("en")} tokens of this text`),
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "attention"), el("th", { scope: "col" }, "this head"), el("th", { scope: "col" }, "if even"))),
    el("tbody", {}, ...rows.map(([name, value, base]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, value), el("td", { class: "quiet" }, base)))),
  );
}
