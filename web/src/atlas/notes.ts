// What the numbers mean: definitions, thresholds and their sources, and what none of this can show.

import { el } from "../dom.ts";
import type { App } from "./app.ts";
import type { Claim, Corpus, Named } from "./data.ts";
import { conditions, count, plural, unitOf } from "./text.ts";

const READ = [
  "“No role found” means that no claim tested here holds: the head may do something that was not measured.",
  "Intervals are 95 % bootstrap intervals over texts; n counts the cases, such as queries, repeated tokens or labelled words.",
];

/** What was read, and whether all of it. */
function reading({ complete, probes }: Corpus): string {
  const parts = probes.map(({ name, texts, tokens }) => `${name} (${plural(texts, "text")}, ${count(tokens)} tokens)`);
  return `Measured on ${parts.join("; ")}.${complete ? "" : " The run was stopped before the corpus ended."}`;
}

export function notes(app: App): HTMLElement {
  const { measures, layers, notes, corpus } = app.atlas.data;
  const cell = (text: string) => el("td", {}, el("bdi", {}, text));
  const row = (measure: Named, claim: Claim | null) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, el("bdi", {}, measure.label)),
      cell([measure.definition, ...measure.notes].join(" ")),
      cell(unitOf(measure)),
      cell(measure.baselineName),
      cell(claim ? conditions(claim) : "no claim"),
      cell(claim?.source ?? ""),
    );
  const rows = [...measures.map((measure) => row(measure, measure.claim)), ...layers.map((measure) => row(measure, null))];
  return el(
    "footer",
    { class: "panel notes" },
    el("h2", {}, "How to read this"),
    el("ul", {}, ...[...notes, ...READ, reading(corpus)].map((note) => el("li", {}, note))),
    el(
      "details",
      {},
      el("summary", {}, "Definitions, thresholds and their sources"),
      el(
        "div",
        { class: "scroll-x" },
        el(
          "table",
          { class: "definitions" },
          el("thead", {}, el("tr", {}, ...["Measure", "What it adds up", "Unit", "Baseline", "Needed for a role", "Source of the threshold"].map((name) => el("th", { scope: "col" }, name)))),
          el("tbody", {}, ...rows),
        ),
      ),
    ),
  );
}
