// The state of the atlas's page, and its form in the address.

import type { Theme } from "../colour.ts";
import { type ChangedOf, type PanelOf, Store } from "../store.ts";
import type { Measure } from "./data.ts";
import type { Atlas, Shown } from "./model.ts";
import { type Scale, scaleOf } from "./scale.ts";
import { isShare } from "./text.ts";

export { any } from "../store.ts";

export type Column = "head" | "role" | "score" | "low" | "chosen" | "baseline" | "control" | "n" | "sink" | "other";

export interface State {
  measure: number; // that the grid is coloured by
  against: number; // the second one of the plot
  head: number;
  shown: Shown; // which of two atlases the grid is coloured by
  role: string; // whose heads stand out; "" for none
  letters: boolean; // of roles, on the cells
  sinks: boolean; // marked on the cells
  rows: "roles" | "heads"; // of the table
  find: string;
  sort: Column;
  down: boolean; // the largest first
  theme: Theme;
}

export type Changed = ChangedOf<keyof State>;
export type Panel = PanelOf<keyof State>;

export class App extends Store<State> {
  constructor(
    readonly atlas: Atlas,
    state: State,
    status: HTMLElement,
    changed: (state: State) => void,
  ) {
    super(state, status, changed);
  }

  get modelName(): string {
    return this.atlas.data.model.name;
  }

  get measure(): Measure {
    return this.atlas.data.measures[this.state.measure];
  }

  get against(): Measure {
    return this.atlas.data.measures[this.state.against];
  }

  /** What stands on a head's cell: the letter of its first role, and a plus sign if it has more and there is room. */
  letters(place: number): string {
    const { atlas, state } = this;
    const roles = state.letters ? atlas.rolesOf(place, state.shown) : [];
    if (!roles.length) return "";
    const first = roles.some(({ role }) => role === state.role) ? state.role : roles[0].role;
    return atlas.letters.get(first)! + (roles.length > 1 && atlas.heads <= 20 ? "+" : "");
  }

  /** The numbers that the grid shows, and their colours. */
  coloured(): { values: Float32Array; scale: Scale } {
    const { measure, state } = this;
    const values = this.atlas.scores(measure, state.shown);
    return { values, scale: scaleOf(values, state.theme) };
  }
}

/** Where the page opens: the head whose role is surest, by how far its interval lies above baseline and control. */
export function opening(atlas: Atlas, theme: Theme): State {
  const { measures, roles } = atlas.data;
  const own = roles.filter((role) => !role.other);
  const worth = ({ measure, head }: (typeof own)[number]) => {
    const { scored, baseline, control } = measures[measure];
    const above = Math.max(baseline.values[head], control?.values[head] || 0);
    return isShare(measures[measure]) ? scored.low.values[head] - above : -1; // other units have no common scale
  };
  const best = [...own].sort((a, b) => worth(b) - worth(a))[0];
  return {
    measure: best?.measure ?? 0,
    against: second(atlas, best?.measure ?? 0),
    head: best?.head ?? 0,
    shown: "here",
    role: "",
    letters: true,
    sinks: false,
    rows: own.length ? "roles" : "heads",
    find: "",
    sort: "score",
    down: true,
    theme,
  };
}

const COLUMNS: Column[] = ["head", "role", "score", "low", "chosen", "baseline", "control", "n", "sink", "other"];

/** The measure beside another one: the sink, which swamps so much else, or the next. */
const second = ({ data: { sink, measures } }: Atlas, measure: number): number => (sink && sink.measure !== measure ? sink.measure : (measure + 1) % measures.length);

function entries(atlas: Atlas, state: State): [string, string][] {
  return [
    ["measure", atlas.data.measures[state.measure]?.id ?? ""],
    ["against", atlas.data.measures[state.against]?.id ?? ""],
    ["head", atlas.name(state.head)],
    ["show", state.shown],
    ["role", state.role],
    ["letters", state.letters ? "on" : "off"],
    ["sinks", state.sinks ? "on" : "off"],
    ["rows", state.rows],
    ["find", state.find],
    ["sort", (state.down ? "-" : "") + state.sort],
  ];
}

/** The state as the address has it: the head, and what else differs from the opening. */
export function address(atlas: Atlas, state: State, opened: State): Record<string, string> {
  const first = new Map(entries(atlas, opened));
  return Object.fromEntries(entries(atlas, state).filter(([key, value]) => key === "head" || first.get(key) !== value));
}

/** The state that an address asks for; what it does not say, or says of something else, is as at the opening. */
export function fromAddress(atlas: Atlas, hash: Map<string, string>, opened: State): State {
  const state = { ...opened };
  for (const key of ["measure", "against"] as const) {
    const found = atlas.data.measures.findIndex(({ id }) => id === hash.get(key));
    if (found >= 0) state[key] = found;
  }
  state.head = atlas.place(hash.get("head") ?? "") ?? opened.head;
  const shown = hash.get("show");
  if (shown === "here" || (atlas.data.other && (shown === "other" || shown === "difference"))) state.shown = shown;
  const role = hash.get("role") ?? "";
  if (atlas.letters.has(role)) state.role = role;
  if (hash.has("letters")) state.letters = hash.get("letters") === "on";
  if (hash.has("sinks")) state.sinks = hash.get("sinks") === "on";
  const rows = hash.get("rows");
  if (rows === "roles" || rows === "heads") state.rows = rows;
  state.find = hash.get("find") ?? opened.find;
  const sort = COLUMNS.find((column) => column === hash.get("sort")?.replace(/^-/, ""));
  if (sort) [state.sort, state.down] = [sort, hash.get("sort")!.startsWith("-")];
  return state;
}
