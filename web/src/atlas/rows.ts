// The rows of the table: the roles that heads hold, or every head by one measure; filtered and sorted.

import { range } from "../reading.ts";
import type { App, Column, State } from "./app.ts";
import type { Atlas } from "./model.ts";

export interface Row {
  place: number;
  role: string; // the role of the row, or the roles of the head
  measure: number;
  score: number;
  low: number;
  high: number;
  chosen: number;
  baseline: number;
  control: number;
  n: number;
  texts: number;
  sink: number;
  other: number; // in the other atlas, over all texts
  change: number; // from this atlas to the other, over all texts
}

function rowOf(atlas: Atlas, place: number, at: number, role: string, half: "scored" | "total"): Row {
  const { [half]: part, chosen, total, baseline, control, other } = atlas.data.measures[at];
  return {
    place,
    role,
    measure: at,
    score: part.score.values[place],
    low: part.low.values[place],
    high: part.high.values[place],
    chosen: chosen.score.values[place],
    baseline: baseline.values[place],
    control: control ? control.values[place] : NaN,
    n: part.n,
    texts: part.texts,
    sink: atlas.sinkMeasure()?.total.score.values[place] ?? NaN,
    other: other ? other.score.values[place] : NaN,
    change: other ? other.score.values[place] - total.score.values[place] : NaN,
  };
}

/** All rows of a kind, before the filter. */
function all(atlas: Atlas, { rows, measure }: State): Row[] {
  if (rows === "roles")
    return range(atlas.count).flatMap((place) => atlas.rolesOf(place).map((held) => rowOf(atlas, place, held.measure, held.role, "scored")));
  return range(atlas.count).map((place) => {
    const roles = atlas.rolesOf(place).map(({ role }) => role);
    return rowOf(atlas, place, measure, roles.join(", "), "total");
  });
}

/** Whether a row has every word that is looked for: a head (17.4), a layer (17.), or a part of a role's name. */
function matches(atlas: Atlas, row: Row, words: string[]): boolean {
  const [head, role] = [atlas.name(row.place), (row.role || "no role found").toLowerCase()];
  return words.every((word) => (/^\d+\.\d+$/.test(word) ? head === word : /^\d+\.?$/.test(word) ? head.startsWith(word.replace(/\.?$/, ".")) : role.includes(word)));
}

const key = (row: Row, column: Column): number | string => (column === "head" ? row.place : row[column]);

/** The rows that the table shows, in its order; what is not known comes last. */
export function rowsOf({ atlas, state }: App): { shown: Row[]; of: number } {
  const rows = all(atlas, state);
  const words = state.find.toLowerCase().split(/\s+/).filter(Boolean);
  const found = rows.filter((row) => (state.role === "" || row.role.split(", ").includes(state.role)) && matches(atlas, row, words));
  const direction = state.down ? -1 : 1;
  found.sort((a, b) => {
    const [x, y] = [key(a, state.sort), key(b, state.sort)];
    if (typeof x === "string" || typeof y === "string") return direction * String(x).localeCompare(String(y), "en") || a.place - b.place;
    if (Number.isNaN(x) || Number.isNaN(y)) return Number(Number.isNaN(x)) - Number(Number.isNaN(y)) || a.place - b.place;
    return direction * (x - y) || a.place - b.place;
  });
  return { shown: found, of: rows.length };
}
