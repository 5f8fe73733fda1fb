// What the numbers mean: definitions, thresholds and their sources, and what none of this can show.

import { el } from "../dom.ts";
import type { App } from "./app.ts";
import { show, unitOf } from "./text.ts";

const READ = [
  "An attention weight is not an explanation: it says where a head took its values from, not what the model makes of them.",
  "A role is a claim that can be wrong. The heads of a role are chosen on one half of the texts and scored on the other; the score must reach the threshold and lie above the baseline on texts that had no part in the choice.",
  "“No role found” means that no claim tested here holds. The head may do something that was not measured.",
  "The control is the same head on the same texts with their tokens shuffled: what remains there does not come from the meaning of the text.",
  "Intervals are 95 % bootstrap intervals over texts; n counts the cases, such as queries, repeated tokens or labelled words.",
];

export function notes(app: App): HTMLElement {
  const { measures, notes } = app.atlas.data;
  const cell = (text: string) => el("td", {}, el("bdi", {}, text));
  const rows = measures.map(({ label, definition, claim, baselineName, notes: own, ...measure }) => {
    const needs = claim ? `${show(claim.threshold)}${claim.overBaseline > 1 ? ` and ${claim.overBaseline} × baseline` : ""}` : "no claim";
    return el(
      "tr",
      {},
      el("th", { scope: "row" }, el("bdi", {}, label)),
      cell([definition, ...own].join(" ")),
      cell(unitOf({ label, definition, claim, baselineName, notes: own, ...measure })),
      cell(baselineName),
      cell(needs),
      cell(claim?.source ?? ""),
    );
  });
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
          el("thead", {}, el("tr", {}, ...["Measure", "What it adds up", "Unit", "Baseline", "Role from", "Source of the threshold"].map((name) => el("th", { scope: "col" }, name)))),
          el("tbody", {}, ...rows),
        ),
      ),
    ),
  );
}
