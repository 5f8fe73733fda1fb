// The sentence on top of a picture: what the selected patch takes from its strongest other patch.

import { any, type App, type Panel, percent } from "../app.ts";
import { el } from "../dom.ts";
import { headsName, type Picture } from "./data.ts";

export function pictureLead(app: App, pictures: Picture[]): Panel {
  const said = el("p", { class: "said", "aria-live": "polite" });
  const hint = "Click a patch or a special token to follow it, or a head to see it alone. A weight says where a head took its values from; it is not an explanation.";
  const element = el("section", { class: "lead", "aria-label": "In a sentence" }, said, el("p", { class: "quiet more" }, hint), ...app.page.warnings.map((warning) => el("p", { class: "warning", role: "note" }, warning)));
  const strong = (text: string) => el("bdi", { class: "strong" }, text);
  const draw = () => {
    const { state, reading } = app;
    const picture = pictures[state.text];
    if (state.token === null) return said.replaceChildren("Where each patch looked while the model read this picture. ", el("b", {}, "Click a patch."));
    const part = picture.partOf(state.token);
    const row = picture.row(part, { ...state, direction: "from" });
    let best = -1;
    for (let other = picture.data.before; other < picture.parts; other++) if (other !== part && (best < 0 || row[other] > row[best])) best = other;
    if (best < 0) return said.replaceChildren();
    const other = reading.spelled(picture.tokenOf(best)) + (picture.data.join > 1 ? ` (${picture.data.join} × ${picture.data.join} patches)` : "");
    said.replaceChildren(
      strong(reading.spelled(state.token)), " takes ", el("b", {}, percent(row[best])), " of its attention from ", strong(other), `, the most of all other patches (${headsName(state)}), where an even share would be ${percent(picture.size(best) / picture.length)}.`,
    );
  };
  draw();
  return {
    element,
    update(changed) {
      if (any(changed, "text", "token", "layer", "head", "scope")) draw();
    },
  };
}
