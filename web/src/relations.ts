// The selected word: where it looks most and who looks at it most, over all layers and heads.

import { type App, type Panel, show, times } from "./app.ts";
import { choice, el, keepFocus } from "./dom.ts";
import type { Direction, Relation } from "./reading.ts";

export function relationsPanel(app: App): Panel {
  const title = el("h2", { id: "h-word" });
  const controls = el("div", { class: "controls" });
  const body = el("div", { class: "columns" });
  const note = el("p", { class: "caption" });
  const element = el(
    "section",
    { class: "panel", "aria-labelledby": "h-word" },
    el("div", { class: "panel-head" }, title, controls),
    note,
    body,
  );
  let only = false;
  let special = false;

  const list = (unit: number, direction: Direction): HTMLElement => {
    const { reading, state } = app;
    const found = reading.strongest(unit, direction, {
      only: only ? [state.layer, state.head] : undefined,
      special,
      most: 8,
    });
    return el(
      "div",
      {},
      el("h3", {}, direction === "from" ? "Where it looks" : "Who looks at it"),
      found.length
        ? el("ol", { class: "bars" }, ...found.map((relation) => item(unit, direction, relation)))
        : el("p", { class: "quiet" }, reading.exact ? "Nothing else." : "Nothing among the relations kept."),
    );
  };

  const item = (unit: number, direction: Direction, { other, layer, head, weight, even }: Relation): HTMLElement => {
    const { reading, state } = app;
    const name = reading.unitText[other];
    const position = reading.units[other][0];
    const pressed =
      state.layer === layer && state.head === head && state.direction === direction &&
      state.other !== null && reading.unitOf[state.other] === other;
    const [query, key] = direction === "from" ? [reading.unitText[unit], name] : [name, reading.unitText[unit]];
    return el(
      "li",
      {},
      el(
        "button",
        {
          type: "button",
          "aria-pressed": String(pressed),
          "data-focus": `relation ${direction} ${other}`,
          "aria-label": `${query} looks at ${key}: ${show(weight)} in head ${layer}.${head}, an even spread would give ${show(even)}`,
          title: `${query} → ${key} · token ${position}`,
          on: { click: () => app.set({ layer, head, direction, other: position, scope: "head" }) },
        },
        el("span", { class: "bar-name" }, name, " ", el("small", {}, where(reading.wordsBetween(unit, other)))),
        el(
          "span",
          { class: "bar-track" },
          el("span", { class: "bar", style: { width: `${Math.max(0.5, 100 * Math.min(1, weight))}%` } }),
          el("span", { class: "bar-even", style: { left: `${100 * Math.min(1, even)}%` } }),
        ),
        el("span", { class: "bar-value" }, show(weight)),
        el("span", { class: "bar-head" }, `${layer}.${head}`),
        el("span", { class: "bar-times" }, times(weight, even)),
      ),
    );
  };

  const draw = () => {
    const { state, reading } = app;
    controls.replaceChildren();
    if (state.token === null) {
      title.textContent = "A word’s relations";
      note.textContent = "Click a token of the text to see where it looks and who looks at it.";
      body.replaceChildren();
      return;
    }
    const unit = reading.unitOf[state.token];
    title.textContent = `“${reading.unitText[unit]}”: its strongest relations`;
    controls.append(
      choice("Which heads", [["all", "All heads"], ["one", `Head ${state.layer}.${state.head}`]], only ? "one" : "all", (value) => {
        only = value === "one";
        keepFocus(draw);
      }),
      el(
        "label",
        { class: "check" },
        (() => {
          const box = el("input", { type: "checkbox", "data-focus": "special" });
          box.checked = special;
          box.addEventListener("change", () => ((special = box.checked), keepFocus(draw)));
          return box;
        })(),
        "also specials, marks, itself",
      ),
    );
    const pieces = reading.units[unit].length;
    note.textContent =
      `Bar: weight, in the head (layer.head) where it is largest. Tick: what an even spread would give; × is the ratio.` +
      (pieces > 1 ? ` This word has ${pieces} pieces: summed to a word, averaged from it.` : "") +
      (reading.exact ? "" : " Long text: from the strongest relations of each token; a word of several pieces may get more than is shown.");
    body.replaceChildren(list(unit, "from"), list(unit, "to"));
  };

  draw();
  return {
    element,
    update(changed) {
      if (["text", "token", "other", "layer", "head", "direction"].some((key) => changed.has(key as "text"))) draw();
    },
  };
}

/** How far away the partner stands, counted in words. */
function where(offset: number): string {
  if (offset === 0) return "";
  if (Math.abs(offset) === 1) return offset > 0 ? "next word" : "word before";
  return `${Math.abs(offset).toLocaleString("en")} ${offset > 0 ? "on" : "back"}`;
}
