// Two texts compared, by head: what a shared word gives to the same and to different words (comparison.py).

import { isPositional, strongest } from "./ranking.ts";
import { range, type Reading } from "./reading.ts";

/** A head that gives another share to the same word in the second text; `keys` are its units in both. */
export interface Change {
  keys: [number, number];
  layer: number;
  head: number;
  weights: [number, number];
}

const LEAST = 0.05; // a smaller difference is not shown,
const NOISE = 3; // nor what is below this many times a head's root mean square change elsewhere
const NOISE_WORDS = 100;

/** The changes of a shared word to other shared content words, beyond the noise. */
export function changes([first, second]: Reading[], pairs: [number, number][], at: number, most = 6): Change[] {
  const partners = range(pairs.length).filter(
    (n) => n !== at && isContent(first, pairs[n][0]) && isContent(second, pairs[n][1]),
  );
  if (!partners.length) return [];
  const others = range(pairs.length).filter((n) => n !== at).slice(0, NOISE_WORDS);
  const found: Change[] = [];
  for (let layer = 0; layer < first.layers; layer++)
    for (let head = 0; head < first.heads; head++) {
      const weights = (query: number, key: number): [number, number] => [
        first.between(pairs[query][0], pairs[key][0], layer, head),
        second.between(pairs[query][1], pairs[key][1], layer, head),
      ];
      let square = 0;
      for (const query of others) for (let key = 0; key < pairs.length; key++) square += gap(weights(query, key)) ** 2;
      const noise = Math.sqrt(square / Math.max(1, others.length * pairs.length));
      for (const partner of partners) {
        const both = weights(at, partner);
        if (Math.abs(gap(both)) >= Math.max(LEAST, NOISE * noise)) found.push({ keys: pairs[partner], layer, head, weights: both });
      }
    }
  found.sort((a, b) => Math.abs(gap(b.weights)) - Math.abs(gap(a.weights)));
  const seen = new Map<number, number>();
  return found
    .filter(({ keys: [a] }) => seen.set(a, (seen.get(a) ?? 0) + 1).get(a)! <= 2)
    .slice(0, most);
}

/** The heads that take a shared word's context from different content words in the two texts. */
export function contrasts([first, second]: Reading[], [a, b]: [number, number], most = 5): Change[] {
  const found: (Change & { score: number; words: string })[] = [];
  for (const place of range(first.layers * first.heads)) {
    if (isPositional(first, place)) continue;
    const [one] = strongest(first, a, "from", { only: place, most: 1 }).content;
    const [two] = strongest(second, b, "from", { only: place, most: 1 }).content;
    if (!one || !two || Math.min(one.weight - one.usual, two.weight - two.usual) < LEAST) continue;
    const words = [first.unitText[one.other], second.unitText[two.other]].map((word) => word.toLowerCase());
    if (words[0] === words[1]) continue;
    found.push({
      keys: [one.other, two.other],
      layer: one.layer,
      head: one.head,
      weights: [one.weight, two.weight],
      score: one.weight - one.usual + two.weight - two.usual,
      words: words.join("\n"),
    });
  }
  found.sort((x, y) => y.score - x.score);
  const seen = new Set<string>();
  return found.filter(({ words }) => !seen.has(words) && seen.add(words)).slice(0, most);
}

const isContent = (reading: Reading, unit: number): boolean => reading.content.has(unit) && !reading.aside.has(unit);

export const gap = (weights: [number, number]): number => weights[1] - weights[0];
