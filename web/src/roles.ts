// What the atlas of the model says a head does, beside what it does on this text.

import type { App } from "./app.ts";
import { el } from "./dom.ts";

/** The roles of a head in the atlas, the surest first; none where there is no atlas. */
export const rolesOf = ({ page }: App, place: number): string[] => page.atlas?.roles.find(([head]) => head === place)?.[1] ?? [];

/** A line on the roles of a head, with a link to the head in the atlas. */
export function rolesLine(app: App, layer: number, head: number): HTMLElement | null {
  const { atlas, model } = app.page;
  if (!atlas) return null;
  const roles = rolesOf(app, layer * model.heads + head);
  const over = `, over ${atlas.tokens.toLocaleString("en")} tokens of ${atlas.corpus}. `;
  return el(
    "p",
    { class: "caption atlas-roles" },
    "In the atlas: ",
    el("b", {}, roles.join(", ") || "no role found"),
    over,
    atlas.link !== null && el("a", { href: `${atlas.link}#head=${layer}.${head}` }, `Head ${layer}.${head} in the atlas`),
  );
}
