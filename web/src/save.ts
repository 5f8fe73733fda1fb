// The buttons that save a view as a drawing, a picture or a table.

import { el } from "./dom.ts";
import { type Cell, fileName, saveCsv, savePng, saveSvg } from "./export.ts";

export type { Cell };

export interface Sheet {
  header: string[];
  rows: Cell[][];
}

/** What a view can be saved as; `part` names it in the file's name. */
export interface Saved {
  what: string;
  part: () => string;
  figure: () => SVGSVGElement;
  sheet: () => Sheet;
}

/** A number with the digits that the page's data has. */
const short = (cell: Cell): Cell => (typeof cell === "number" ? Number(cell.toPrecision(6)) : cell);

export function saveControls(app: { modelName: string }, { what, part, figure, sheet }: Saved): HTMLElement {
  const name = (ending: string) => fileName(ending, app.modelName, part());
  const table = () => {
    const { header, rows } = sheet();
    return [header, ...rows.map((row) => row.map(short))];
  };
  const ways: [string, string, () => void][] = [
    ["SVG", "as a drawing", () => saveSvg(figure(), name("svg"))],
    ["PNG", "as a picture", () => void savePng(figure(), name("png"))],
    ["CSV", "as a table", () => saveCsv(table(), name("csv"))],
  ];
  return el(
    "div",
    { class: "save", role: "group", "aria-label": `Save ${what}`, "data-unsaved": true },
    ...ways.map(([label, how, click]) =>
      el("button", { type: "button", class: "plain", title: `Save ${what} ${how}`, "aria-label": `Save ${what} as ${label}`, on: { click } }, label),
    ),
  );
}
