// What the numbers mean: definitions, thresholds and their sources, and what none of this can show.

import { el } from "../dom.ts";
import type { App } from "./app.ts";
import type { Claim, Named } from "./data.ts";
import { brief, conditions, unitOf } from "./text.ts";

const READ = [
  "An attention weight is not an explanation: it says where a head took its values from, not what the model makes of them.",
  "A role is a claim that can be wrong. The heads of a role are chosen on one half of the texts and scored on the other; the score must reach the threshold, and lie above the baseline and the control, on texts that had no part in the choice.",
  "“No role found” means that no claim tested here holds. The head may do something that was not measured.",
  "The control, “shuffled”, is the same head at the same positions of the text with its tokens shuffled: what remains there does not come from what the text says. A role of position needs no margin over it.",
  "The share of the sink, mostly the first token, is taken out before other shares are formed, and shown beside them.",
  "Intervals are 95 % bootstrap intervals over texts; n counts the cases, such as queries, repeated tokens or labelled words.",
];

export function notes(app: App): HTMLElement {
  const { measures, layers, notes } = app.atlas.data;
  const cell = (text: string) => el("td", {}, el("bdi", {}, text));
  const row = (measure: Named, claim: Claim | null) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, el("bdi", {}, measure.label)),
      cell([measure.definition, ...measure.notes].join(" ")),
      cell(unitOf(measure)),
      cell(measure.baselineName),
      cell(claim ? [brief(claim.threshold), conditions(claim)].filter(Boolean).join("; ") : "no claim"),
      cell(claim?.source ?? ""),
    );
  const rows = [...measures.map((measure) => row(measure, measure.claim)), ...layers.map((measure) => row(measure, null))];
  return el(
    "footer",
    { class: "panel notes" },
    el("h2", {}, "How to read this"),
    el("ul", {}, ...[...READ, ...notes].map((note) => el("li", {}, note))),
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
