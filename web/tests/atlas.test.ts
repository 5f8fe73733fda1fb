// The atlas must answer as the Python side does: small-atlas.json holds both, written by `python web/mock.py --small`.

import assert from "node:assert/strict";
import { test } from "node:test";
import { address, App, fromAddress, opening } from "../src/atlas/app.ts";
import { unpackAtlas } from "../src/atlas/data.ts";
import { abbreviate, Atlas } from "../src/atlas/model.ts";
import { axis } from "../src/atlas/plot.ts";
import { rowsOf } from "../src/atlas/rows.ts";
import { scaleOf } from "../src/atlas/scale.ts";
import { median, show, signed } from "../src/atlas/text.ts";
import { csv } from "../src/export.ts";
import small from "./small-atlas.json";

const read = async () => new Atlas(await unpackAtlas(JSON.stringify(small.page)));

const app = (atlas: Atlas, patch = {}) =>
  new App(atlas, { ...opening(atlas, "light"), ...patch }, {} as HTMLElement, () => undefined);

const near = (a: number, b: number, most = 1e-4) => assert.ok(Math.abs(a - b) <= most, `${a} ${b}`);

test("scores, examples and similar heads are those of the atlas", async () => {
  const atlas = await read();
  const given = small.atlas.measures.filter(({ measure }) => measure !== "contextuality");
  given.forEach(({ total }, at) =>
    (total.score as number[][]).flat().forEach((score, place) => near(atlas.data.measures[at].total.score.values[place], score, 1e-3)),
  );
  const own = small.atlas.examples.filter(({ layer, head }) => layer === 1 && head === 2);
  assert.deepEqual(
    atlas.examples(5).map(({ tokens, query, key }) => ({ tokens, query, key })),
    own.map(({ tokens, query, key }) => ({ tokens, query, key })),
  );
  const similar = small.atlas.similar.filter(({ layer, head }) => layer === 0 && head === 1);
  assert.deepEqual(
    atlas.similar(1).map(({ place }) => place),
    similar.map(({ other_layer, other_head }) => other_layer * 3 + other_head),
  );
});

test("sinks are counted apart from roles", async () => {
  const atlas = await read();
  assert.equal(atlas.sinks(), small.atlas.roles.filter(({ role }) => role === "sink").length);
  assert.ok(!atlas.roles.includes("sink"));
});

test("an address restores the state, and one of another atlas does no harm", async () => {
  const atlas = await read();
  const opened = opening(atlas, "light");
  const state = { ...opened, measure: 3, head: 4, shown: "difference" as const, rows: "heads" as const, find: "1. role", sort: "n" as const, down: false };
  const written = new Map(Object.entries(address(atlas, state, opened)));
  assert.deepEqual(fromAddress(atlas, written, opened), state);
  const strange = new Map([["measure", "?"], ["head", "9.9"], ["sort", "-?"], ["show", "x"], ["role", "<b>"], ["rows", ""]]);
  assert.deepEqual(fromAddress(atlas, strange, opened), opened);
});

test("rows are filtered by head, layer and role, and sorted with what is unknown last", async () => {
  const atlas = await read();
  const places = (patch: object) => rowsOf(app(atlas, { rows: "heads", sort: "head", down: false, ...patch })).shown.map(({ place }) => place);
  assert.deepEqual(places({}), [0, 1, 2, 3, 4, 5]);
  assert.deepEqual(places({ down: true }), [5, 4, 3, 2, 1, 0]);
  assert.deepEqual(places({ find: "1." }), [3, 4, 5]);
  assert.deepEqual(places({ find: "0.2" }), [2]);
  atlas.data.measures[0].total.score.values[3] = NaN;
  assert.equal(places({ measure: 0, sort: "score" }).at(-1), 3);
  assert.equal(places({ measure: 0, sort: "score", down: true }).at(-1), 3);
});

test("letters of roles are all different", () => {
  const roles = ["previous token", "punctuation", "position −2", "position −3", "p", "ポ", "…"];
  const letters = abbreviate(roles);
  assert.equal(new Set(letters.values()).size, roles.length);
  assert.equal(letters.get("previous token"), "P");
});

test("scales begin at zero, or lie about it", () => {
  const up = scaleOf([0.1, 0.83, NaN], "light");
  assert.deepEqual([up.low, up.high, up.signed], [0, 0.83, false]);
  const both = scaleOf([-0.2, 0.5], "dark");
  assert.deepEqual([both.low, both.high, both.signed], [-0.5, 0.5, true]);
  assert.equal(scaleOf([0, 0], "light").high, 1);
  assert.deepEqual(axis([0, 32], 0, 100, 8, true).ticks, [0, 5, 10, 15, 20, 25, 30]);
});

test("numbers are written for people", () => {
  assert.deepEqual([0, 0.00001, -0.00001, 0.5, -0.25, 12.34, 4321, NaN].map(show), ["0.000", "<0.001", ">−0.001", "0.500", "−0.250", "12.3", "4321", "–"]);
  assert.equal(signed(0.25), "+0.250");
  assert.equal(median(Float32Array.of(3, NaN, 1, 2)), 2);
});

test("a table is written as CSV that no spreadsheet runs", () => {
  const rows = [["a", "b"], ["=1+1", 'say "x", y'], [null, NaN], [-1.5, "-x"]];
  assert.equal(csv(rows), 'a,b\r\n\'=1+1,"say ""x"", y"\r\n,\r\n-1.5,\'-x\r\n');
});
