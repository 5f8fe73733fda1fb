// A chart of a few lines over the layers, with a table of its numbers.

import { show } from "./app.ts";
import { el, svg } from "./dom.ts";
import { range } from "./reading.ts";
import { hideTip, tip } from "./tip.ts";

export interface Line {
  name: string;
  values: number[];
  kind: "main" | "second" | "ground";
}

const WIDTH = 460;
const HEIGHT = 232;
const BOX = { left: 38, right: 14, top: 14, bottom: 42 };

/** Draw lines over the layers passed; all values lie between -1 and 1. */
export function chart(caption: string, lines: Line[], heading: string): HTMLElement {
  const count = lines[0].values.length;
  const low = Math.min(0, ...lines.flatMap((line) => line.values));
  const floor = low < 0 ? Math.floor(low * 5) / 5 : 0;
  const x = (layer: number) => BOX.left + (layer / Math.max(1, count - 1)) * (WIDTH - BOX.left - BOX.right);
  const y = (value: number) => BOX.top + ((1 - value) / (1 - floor)) * (HEIGHT - BOX.top - BOX.bottom);
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "chart", role: "img" });
  picture.append(svg("title", {}, `${heading}: ${lines.map((l) => `${l.name} ${l.values.map(show).join(", ")}`).join("; ")}`));
  for (const tick of range(Math.round((1 - floor) * 5) + 1).map((i) => floor + i / 5))
    picture.append(
      svg("path", { d: `M${BOX.left} ${y(tick)}H${WIDTH - BOX.right}`, class: Math.abs(tick) < 1e-6 ? "axis" : "rule" }),
      svg("text", { x: BOX.left - 7, y: y(tick) + 4, "text-anchor": "end", class: "tick" }, tick.toFixed(1)),
    );
  const every = Math.ceil(count / 13);
  for (const layer of range(count))
    if (layer % every === 0)
      picture.append(
        svg("text", { x: x(layer), y: HEIGHT - 26, "text-anchor": "middle", class: "tick" }, String(layer)),
      );
  picture.append(svg("text", { x: (BOX.left + WIDTH - BOX.right) / 2, y: HEIGHT - 8, "text-anchor": "middle", class: "tick" }, "layers passed (0: embedding)"));
  const guide = svg("path", { class: "guide", visibility: "hidden" });
  picture.append(guide);
  for (const line of [...lines].reverse()) {
    const d = line.values.map((value, layer) => `${layer ? "L" : "M"}${x(layer).toFixed(1)} ${y(value).toFixed(1)}`).join("");
    picture.append(svg("path", { d, class: `line ${line.kind}` }));
    if (count <= 40 && line.kind !== "ground")
      line.values.forEach((value, layer) => picture.append(svg("circle", { cx: x(layer), cy: y(value), r: 3, class: `dot ${line.kind}` })));
  }
  picture.addEventListener("pointermove", (event) => {
    const frame = picture.getBoundingClientRect();
    const at = ((event.clientX - frame.left) / frame.width) * WIDTH;
    const layer = Math.max(0, Math.min(count - 1, Math.round(((at - BOX.left) / (WIDTH - BOX.left - BOX.right)) * (count - 1))));
    guide.setAttribute("d", `M${x(layer)} ${BOX.top}V${HEIGHT - BOX.bottom}`);
    guide.setAttribute("visibility", "visible");
    tip(event.clientX, event.clientY, [layer ? `${layer} layer${layer > 1 ? "s" : ""} passed` : "embedding", ...lines.map((l) => `${l.name}: ${l.values[layer].toFixed(3)}`)]);
  });
  picture.addEventListener("pointerleave", () => {
    guide.setAttribute("visibility", "hidden");
    hideTip();
  });
  return el(
    "figure",
    { class: "chart-box" },
    el("h3", {}, heading),
    el("p", { class: "caption" }, caption),
    picture,
    el("div", { class: "keys" }, ...lines.map((line) => el("span", { class: "key" }, key(line.kind), line.name))),
    el(
      "details",
      { "data-unsaved": true },
      el("summary", {}, "Numbers"),
      el(
        "div",
        { class: "scroll-x" },
        el(
          "table",
          {},
          el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "layers passed (0: embedding)"), ...range(count).map((i) => el("th", { scope: "col" }, i)))),
          el("tbody", {}, ...lines.map((line) => el("tr", {}, el("th", { scope: "row" }, line.name), ...line.values.map((v) => el("td", {}, v.toFixed(3)))))),
        ),
      ),
    ),
  );
}

const key = (kind: Line["kind"]): SVGElement =>
  svg("svg", { viewBox: "0 0 22 6", class: "key-line", "aria-hidden": "true" }, svg("path", { d: "M0 3H22", class: `line ${kind}` }));
