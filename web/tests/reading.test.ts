// The view must answer as the Python side does: small.json holds both, written by `python web/mock.py --small`.

import assert from "node:assert/strict";
import { test } from "node:test";
import { address, fromAddress } from "../src/address.ts";
import type { State } from "../src/app.ts";
import { arrow, directionOf, name } from "../src/bidi.ts";
import { colour } from "../src/colour.ts";
import { changes, contrasts } from "../src/compare.ts";
import { type ReadingData, unpackPage } from "../src/data.ts";
import { arrowStep } from "../src/dom.ts";
import { csv } from "../src/export.ts";
import { offsetBin, strongest } from "../src/ranking.ts";
import { Levels } from "../src/levels.ts";
import { range, Reading, sliceText } from "../src/reading.ts";
import { search } from "../src/text-model.ts";
import small from "./small.json";

const read = async () => Reading.all(await unpackPage(JSON.stringify(small.page)));

/** The two texts of small.json, which share words. */
const compared = async () => {
  const page = await unpackPage(JSON.stringify(small.compared));
  return { page, readings: Reading.all(page) };
};

test("exact weights come back: every row adds up to one", async () => {
  for (const reading of await read()) {
    assert.ok(reading.exact);
    for (let query = 0; query < reading.length; query++) {
      const sum = reading.row(query, "from", "head", 1, 0).reduce((a, b) => a + b, 0);
      assert.ok(Math.abs(sum - 1) < 1e-3, `${sum}`);
    }
  }
});

test("strongest relations are those of the report", async () => {
  const readings = await read();
  for (const row of small.relations) {
    const reading = readings[row.text];
    const direction = row.direction === "looks at" ? "from" : "to";
    const { content, others, positional } = strongest(reading, row.index, direction, { most: 99 });
    const group = row.positional ? positional : row.content ? content : others;
    const same = group.find((r) => r.layer === row.layer && r.head === row.head && reading.unitText[r.other] === row.other && reading.wordsBetween(row.index, r.other) === row.offset);
    assert.ok(same, JSON.stringify(row));
    assert.ok(Math.abs(same.weight - row.weight) < 1e-4);
    assert.ok(Math.abs(same.even - row.uniform) < 1e-6);
    assert.ok(Math.abs(same.usual - row.at_offset) < 1e-4, `${same.usual} ${row.at_offset}`);
  }
});

test("changes and contrasts are those of the report", async () => {
  assert.ok(small.changes.length && small.contrasts.length);
  const { page, readings } = await compared();
  for (const [kind, found] of [["changes", changes], ["contrasts", contrasts]] as const)
    for (const word of new Set(small[kind].map((row) => row.word))) {
      const at = page.comparison!.pairs.findIndex(([a]) => readings[0].unitText[a] === word);
      const ours = found === changes ? changes(readings, page.comparison!.pairs, at) : contrasts(readings, page.comparison!.pairs[at]);
      const theirs = small[kind].filter((row) => row.word === word);
      assert.deepEqual(ours.map(({ layer, head }) => `${layer}.${head}`), theirs.map(({ layer, head }) => `${layer}.${head}`));
      ours.forEach(({ weights }, n) => assert.ok(Math.abs(weights[0] - theirs[n].first) + Math.abs(weights[1] - theirs[n].second) < 1e-3));
    }
});

test("offsets fall into the bins of offsets.py", () => {
  assert.deepEqual([0, -1, 1, -8, 8, -9, 9, -16, 16, 17, 32, 33, -64, 65].map(offsetBin), [0, 1, 2, 15, 16, 17, 18, 17, 18, 20, 20, 22, 21, 24]);
});

test("a link holds the whole state, and nonsense in it does no harm", async () => {
  const { page } = await compared();
  const state: State = {
    text: 1, layer: 1, head: 2, token: 3, other: 1, direction: "to", scope: "layer", hide: true, own: true, grid: "pair", shape: "lines", zoom: "12.3.48", theme: "dark",
  };
  assert.deepEqual(fromAddress(new Map(Object.entries({ ...address(state), theme: "dark" })), page), state);
  assert.deepEqual(fromAddress(new Map([["elsewhere", ""]]), page), {});
  const odd = fromAddress(new Map(Object.entries({ zoom: "1.b", text: "9", token: "1e9", layer: "-1", scope: "<b>", hide: "yes" })), page);
  assert.deepEqual(odd, { text: 0, token: null, other: null, hide: false, own: false, zoom: null });
});

/** A long text of 16 tokens in coarse blocks of 8, of which one is refined in blocks of 2; row 9 has single keys. */
function long(): Reading {
  const { page } = { page: structuredClone(small.page.readings[0]) as never as ReadingData };
  const tensor = (shape: number[], values: number[]) => ({ shape, values: Float32Array.from(values) });
  const names = range(16).map((n) => `t${n}`);
  const fine = [0, 0.2, 0, 0, 0.1, 0.1, 0, 0, 0, 0.3, 0, 0.1, 0, 0, 0, 0.4];
  Object.assign(page, {
    text: names.join(" "), causal: true, chosen: [],
    tokens: { text: names, start: range(16).map(() => 0), end: range(16).map(() => 0), word: range(16).map(() => -1), special: [], apart: [0], unknown: [] },
    words: { text: [], mark: [], content: [] },
    map: {
      block: 8, shares: tensor([1, 1, 2, 2], [1, 0, 0.6, 0.4]), apart: tensor([1, 1, 2, 2], [0.5, 0, 0.1, 0]),
      fine: { block: 2, count: [1], cells: tensor([1], [2]), shares: tensor([1, 4, 4], fine), apart: tensor([1, 4, 4], fine.map(() => 0)) },
      rows: { tokens: [9], keys: tensor([1, 1, 1, 2], [3, 0]), weights: tensor([1, 1, 1, 2], [0.25, 0.5]) },
    },
    relations: { each: 1, keys: tensor([16, 1], range(16).map(() => 2)), heads: tensor([16, 1], range(16).map(() => 0)), weights: tensor([16, 1], range(16).map((n) => (n === 12 ? 0.125 : 0))) },
  });
  return new Reading(page, 1, 1);
}

test("a part of a long text's map is drawn from the finest blocks that are kept", () => {
  const levels = new Levels(long());
  assert.deepEqual(levels.sizes, [8, 2, 1]);
  assert.equal(levels.whole, 16);
  const near = (found: number, expected: number) => assert.ok(Math.abs(found - expected) < 1e-6, `${found}, not ${expected}`);
  const whole = levels.grid({ query: 0, key: 0, span: 16 }, 0, 0, false);
  assert.equal(whole.size, 1); // sixteen tokens fit into a map one by one
  const at = (query: number, key: number) => whole.values[query * whole.side + key];
  near(at(9, 3), 0.25); // a single key that is kept
  near(at(9, 2), 0.1); // its block of two keys, spread evenly
  near(at(12, 2), 0.125); // of the relations
  near(at(7, 0), 0.5 / 8 + 0.5); // what falls on a token set apart is where it is
  near(at(7, 1), 0.5 / 8);
  near(at(2, 1), 0.5 / 3); // a query sees the keys before it alone
  assert.equal(at(3, 5), 0);
  assert.equal(levels.weight(9, 3), 0.25);
  assert.equal(levels.weight(9, 4), null);
  near(levels.share(8, 2, 2, false)[0], 0.2);
  assert.equal(levels.share(8, 2, 2, false)[1], 2);
  assert.deepEqual(levels.share(8, 8, 2, false)[1], 8);
  near(levels.grid({ query: 0, key: 0, span: 16 }, 0, 0, true).values[7 * whole.side], 0.5 / 8);
  for (let query = 0; query < 8; query++) near(range(16).reduce((sum, key) => sum + at(query, key), 0), 1);
});

test("a part of a map stays inside it", () => {
  const levels = new Levels(long());
  assert.deepEqual(levels.inside({ query: -5, key: 9, span: 12 }), { query: 0, key: 4, span: 12 });
  assert.deepEqual(levels.inside({ query: 3, key: 3, span: 99 }), { query: 0, key: 0, span: 16 });
  assert.equal(levels.inside({ query: 3, key: 3, span: 1 }).span, 12);
});

test("a table is CSV that spreadsheets do not run", () => {
  const rows = [["a", "b"], ["=1+1", 0.125], ['say "x", y', null], ["x", NaN]];
  assert.equal(csv(rows), 'a,b\r\n\'=1+1,0.125\r\n"say ""x"", y",\r\nx,\r\n');
});

test("names keep their direction to themselves", () => {
  assert.equal(directionOf("הבנק near"), "ltr");
  assert.equal(directionOf("הבנק on הנהר"), "rtl");
  assert.equal(arrow("הבנק", "river"), "\u2068הבנק\u2069 → river");
  assert.equal(name("near\u202e"), "near<U+202E>");
});

test("words are found by their beginnings, and one after the other", () => {
  const words = ["The", "old", "bank", "the", "older", "banker"];
  const units = words.map((_, n) => [n]);
  assert.deepEqual(search(words, units, "ban"), [2, 5]);
  assert.deepEqual(search(words, units, "OLD bank"), [1]);
  assert.deepEqual(search(words, units, "  "), []);
});

test("hiding special tokens takes their rows and columns away and changes no number", async () => {
  const [reading] = await read();
  assert.equal(reading.shown(false).length - reading.shown(true).length, 2);
  assert.deepEqual(reading.map(0, 0, true), reading.map(0, 0, false));
});

test("page of an unknown version is refused", async () => {
  await assert.rejects(unpackPage(JSON.stringify({ ...small.page, version: 9 })), /limelight.page 9/);
});

test("characters are counted as Python counts them", () => {
  assert.equal(sliceText("a🌊 river")(1, 2), "🌊");
  assert.equal(sliceText("a🌊 river")(3, 8), "river");
});

test("the scale grows in one direction of lightness", () => {
  const light = (rgb: number[]) => 0.2126 * rgb[0] + 0.7152 * rgb[1] + 0.0722 * rgb[2];
  for (const theme of ["light", "dark"] as const) {
    const steps = Array.from({ length: 21 }, (_, i) => light(colour(theme, (i / 20) ** 2, 1)));
    const sign = theme === "light" ? -1 : 1;
    for (let i = 1; i < steps.length; i++) assert.ok(sign * (steps[i] - steps[i - 1]) > 0, `${theme} ${i}`);
  }
});

test("arrow keys stay inside", () => {
  assert.equal(arrowStep("ArrowDown", 0, 72, 12), 12);
  assert.equal(arrowStep("ArrowUp", 3, 72, 12), 3);
  assert.equal(arrowStep("End", 3, 72, 12), 71);
});
