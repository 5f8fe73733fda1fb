// The view must answer as the Python side does: small.json holds both, written by `python web/mock.py --small`.

import assert from "node:assert/strict";
import { test } from "node:test";
import { colour } from "../src/colour.ts";
import { unpackPage } from "../src/data.ts";
import { arrowStep } from "../src/dom.ts";
import { Reading, sliceText } from "../src/reading.ts";
import small from "./small.json";

const read = async () => Reading.all(await unpackPage(JSON.stringify(small.page)));

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
    const found = reading.strongest(row.index, direction, { special: false, most: 9 });
    const same = found.find((r) => r.layer === row.layer && r.head === row.head && reading.unitText[r.other] === row.other);
    assert.ok(same, JSON.stringify(row));
    assert.ok(Math.abs(same.weight - row.weight) < 1e-4);
    assert.ok(Math.abs(same.even - row.uniform) < 1e-6);
    assert.equal(reading.wordsBetween(row.index, same.other), row.offset);
  }
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
