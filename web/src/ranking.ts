// The strongest relations of a word, ranked as the report ranks them (relations.py): by how much a weight exceeds what
// the same head gives at that distance elsewhere in the text. Content words first, positional heads by themselves.

import { type Direction, range, type Reading } from "./reading.ts";

/** A unit looks at another: in one head, how much, and what an even spread and other pairs at that distance would give. */
export interface Relation {
  other: number;
  layer: number;
  head: number;
  weight: number;
  even: number;
  usual: number;
  contribution: number | null; // the key's share of the length of what the head writes (Kobayashi 2020)
  pieces: number; // of the word looked at; above 1 in a long text the weight is a lower bound
}

export interface Ranked {
  content: Relation[];
  others: Relation[];
  positional: Relation[];
}

const POSITIONAL = 0.5;
const NEAR = 8;

/** The bin of an offset (key minus query), as `offset_bins` of offsets.py. */
export function offsetBin(offset: number): number {
  const distance = Math.abs(offset);
  if (distance === 0) return 0;
  const rank = distance <= NEAR ? distance : NEAR + Math.floor(Math.log2(distance - 1)) + 1 - 3;
  return 2 * rank - (offset < 0 ? 1 : 0);
}

/** Whether a head looks at a relative position: more than half on the previous, own or next token. */
export function isPositional(reading: Reading, place: number): boolean {
  const { previous, own, next } = reading.data.heads;
  return Math.max(previous[place], own[place], next[place]) > POSITIONAL;
}

/** What each head gives from one unit to another at their distance, with one even pair in the mean. */
function usualOf(reading: Reading, query: number, key: number): { at: (place: number, weight: number) => number } {
  const { mean, count } = reading.data.offsets;
  const bins = count.length;
  const rows = reading.units[query];
  const terms: [bin: number, scale: number, even: number][] = [];
  for (const row of rows)
    for (const column of reading.units[key]) {
      if (!reading.sees(row, column)) continue;
      const bin = offsetBin(column - row);
      const pairs = Math.max(1, count[bin]);
      terms.push([bin, count[bin] / pairs / rows.length, 1 / reading.visible(row) / pairs / rows.length]);
    }
  const own = 1 / Math.max(1, count[offsetBin(reading.units[key][0] - rows[0])]);
  return {
    at(place, weight) {
      let sum = 0;
      for (const [bin, scale, even] of terms) sum += mean.values[place * bins + bin] * scale + even;
      return Math.max(0, sum - weight * own);
    },
  };
}

/** The strongest relations of a unit, largest excess first. */
export function strongest(
  reading: Reading,
  unit: number,
  direction: Direction,
  { only, special = false, most = 8 }: { only?: number; special?: boolean; most?: number } = {},
): Ranked {
  const found = reading.exact ? exact(reading, unit, direction, only) : kept(reading, unit, direction);
  const ranked: Ranked = { content: [], others: [], positional: [] };
  for (const [other, weights] of found) {
    if (!special && (other === unit || reading.aside.has(other))) continue;
    const [query, key] = direction === "from" ? [unit, other] : [other, unit];
    const usual = usualOf(reading, query, key);
    let free: Relation | null = null;
    let fixed: Relation | null = null;
    for (const [place, weight] of weights) {
      if (!(weight > 0) || (only !== undefined && place !== only)) continue;
      const base = usual.at(place, weight);
      const better = (than: Relation | null) => !than || weight - base > than.weight - than.usual;
      const relation = (): Relation => ({
        other,
        layer: Math.floor(place / reading.heads),
        head: place % reading.heads,
        weight,
        even: reading.even(query, key),
        usual: base,
        contribution: null,
        pieces: reading.units[key].length,
      });
      if (only !== undefined || !isPositional(reading, place)) {
        if (better(free)) free = relation();
      } else if (weight > POSITIONAL && better(fixed)) fixed = relation();
    }
    if (free) ranked[reading.content.has(other) ? "content" : "others"].push(free);
    if (fixed) ranked.positional.push(fixed);
  }
  const excess = (a: Relation, b: Relation) => b.weight - b.usual - (a.weight - a.usual);
  ranked.content = ranked.content.sort(excess).slice(0, most);
  ranked.others = ranked.others.sort(excess).slice(0, Math.max(2, most - ranked.content.length));
  ranked.positional = ranked.positional.sort((a, b) => b.weight - a.weight).slice(0, Math.ceil(most / 2));
  for (const relation of [...ranked.content, ...ranked.others, ...ranked.positional]) {
    const [query, key] = direction === "from" ? [unit, relation.other] : [relation.other, unit];
    relation.contribution = contribution(reading, query, key, relation.layer, relation.head);
  }
  return ranked;
}

/** A key's share of what a head writes for a query: weights times norms of values, summed to one. */
function contribution(reading: Reading, query: number, key: number, layer: number, head: number): number | null {
  const { norms } = reading.data;
  if (!norms || !reading.exact) return null;
  const from = (layer * reading.heads + head) * reading.length;
  const written = (row: number, column: number) => reading.weight(layer, head, row, column) * norms.values[from + column];
  let share = 0;
  for (const row of reading.units[query]) {
    const whole = range(reading.length).reduce((sum, column) => sum + written(row, column), 0);
    share += reading.units[key].reduce((sum, column) => sum + written(row, column), 0) / Math.max(whole, 1e-30);
  }
  return share / reading.units[query].length;
}

type Weights = [place: number, weight: number][];

function exact(reading: Reading, unit: number, direction: Direction, only?: number): Map<number, Weights> {
  const places = only === undefined ? range(reading.layers * reading.heads) : [only];
  const weight = (other: number, place: number) => {
    const [layer, head] = [Math.floor(place / reading.heads), place % reading.heads];
    return direction === "from" ? reading.between(unit, other, layer, head) : reading.between(other, unit, layer, head);
  };
  return new Map(reading.units.map((_, other) => [other, places.map((place) => [place, weight(other, place)])]));
}

function kept(reading: Reading, unit: number, direction: Direction): Map<number, Weights> {
  const sums = new Map<number, Map<number, number>>();
  for (const piece of reading.units[unit])
    for (const [query, key, place, weight] of reading.kept(piece, direction)) {
      const other = reading.unitOf[direction === "from" ? key : query];
      const from = direction === "from" ? reading.units[unit].length : reading.units[other].length;
      const of = sums.get(other) ?? sums.set(other, new Map()).get(other)!;
      of.set(place, (of.get(place) ?? 0) + weight / from);
    }
  return new Map([...sums].map(([other, weights]) => [other, [...weights]]));
}

/** The one relation that says most of a word: to a content word if there is one, else to any other. */
export function leading(reading: Reading, unit: number, direction: Direction = "from"): Relation | null {
  const { content, others } = strongest(reading, unit, direction, { most: 1 });
  return content[0] ?? others[0] ?? null;
}
