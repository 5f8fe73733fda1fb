// Every head as a point between two measures, so that heads that stand apart are seen.

import { el, svg } from "../dom.ts";
import { range } from "../reading.ts";
import { type Cell, saveControls, type Sheet } from "../save.ts";
import { hideTip, tip } from "../tip.ts";
import { any, type App, type Changed, type Panel } from "./app.ts";
import { canvas, shift, title, type Tone, toneOf, write } from "./draw.ts";
import { measureMenu } from "./menu.ts";
import { axis, frame } from "./plot.ts";
import { show, unitOf } from "./text.ts";

const LETTERED = 400; // with more heads than this, points alone

export class ScatterPanel implements Panel {
  readonly element: HTMLElement;
  private readonly controls = el("div", { class: "controls" });
  private readonly body = el("div", { class: "scatter" });
  private width = 0;

  constructor(private readonly app: App) {
    const save = saveControls(app, {
      what: "the plot",
      part: () => `atlas-${app.measure.id}-against-${app.against.id}`,
      figure: () => scatterFigure(app),
      sheet: () => scatterSheet(app),
    });
    this.element = el(
      "section",
      { class: "panel", "aria-labelledby": "h-scatter" },
      el("div", { class: "panel-head" }, el("h2", { id: "h-scatter" }, "Two measures"), save),
      this.controls,
      this.body,
    );
    this.body.addEventListener("pointermove", (event) => {
      const place = placeOf(event);
      if (place === null || event.pointerType === "touch") return hideTip();
      tip(event.clientX, event.clientY, lines(app, place));
    });
    this.body.addEventListener("pointerleave", hideTip);
    this.body.addEventListener("click", (event) => {
      const place = placeOf(event);
      if (place !== null) app.set({ head: place });
    });
  }

  update(changed: Changed): void {
    if (any(changed, "measure", "against", "role", "letters", "theme")) this.draw();
    else if (any(changed, "head")) this.select();
  }

  /** Move the ring to the selected head, without drawing all points again. */
  private select(): void {
    this.body.querySelector(".ring")?.remove();
    const mark = this.body.querySelector<SVGGElement>(`[data-point="${this.app.state.head}"]`);
    if (!mark) return;
    mark.append(ring(toneOf(this.app)));
    mark.parentElement!.append(mark);
  }

  shown(): void {
    new ResizeObserver(() => {
      const width = Math.round(Math.max(300, this.body.clientWidth));
      if (width === this.width) return;
      this.width = width;
      this.draw();
    }).observe(this.body);
  }

  private draw(): void {
    const { app } = this;
    this.controls.replaceChildren(
      measureMenu(app, "Across", app.state.measure, (measure) => app.set({ measure })),
      measureMenu(app, "Up", app.state.against, (against) => app.set({ against })),
    );
    const height = this.width > 800 ? 380 : 330;
    const figure = canvas(app, this.width, height);
    figure.setAttribute("role", "img");
    figure.setAttribute("aria-label", `${app.measure.label} across and ${app.against.label} up, one point per head; the same heads stand in the grid and in the table`);
    figure.append(scatterDrawing(app, this.width, height));
    this.body.replaceChildren(figure);
  }
}

function placeOf(event: Event): number | null {
  const target = (event.target as Element).closest?.("[data-point]");
  return target ? Number(target.getAttribute("data-point")) : null;
}

function lines({ atlas, measure, against }: App, place: number): string[] {
  const roles = atlas.rolesOf(place).map(({ role }) => role);
  const score = (of: typeof measure) => `${of.label} ${show(of.total.score.values[place])}`;
  return [`head ${atlas.name(place)}`, score(measure), ...(against === measure ? [] : [score(against)]), roles.join(", ") || "no role found"];
}

function scatterDrawing(app: App, width: number, height: number): SVGGElement {
  const { atlas, measure, against, state } = app;
  const tone = toneOf(app);
  const [xs, ys] = [measure.total.score.values, against.total.score.values];
  const x = axis(xs, 46, width - 14, Math.max(3, Math.floor(width / 90)));
  const y = axis(ys, height - 46, 12, 5);
  const group = svg("g", {}, frame(x, y, tone));
  group.append(
    write((46 + width - 14) / 2, height - 8, `${measure.label}, ${unitOf(measure)} →`, tone.faint, { "text-anchor": "middle", "font-size": 11.5 }),
    svg("text", { transform: `translate(11 ${(height - 34) / 2}) rotate(-90)`, fill: tone.faint, "text-anchor": "middle", "font-size": 11.5 }, `${against.label}, ${unitOf(against)} →`),
  );
  const known = range(atlas.count).filter((place) => Number.isFinite(xs[place]) && Number.isFinite(ys[place]));
  const worth = (place: number) => (place === state.head ? 2 : atlas.rolesOf(place).length ? 1 : 0);
  for (const place of known.sort((a, b) => worth(a) - worth(b))) group.append(point(app, place, x.at(xs[place]), y.at(ys[place]), tone));
  return group;
}

const ring = (tone: Tone): SVGCircleElement => svg("circle", { class: "ring", r: 10, fill: "none", stroke: tone.mark, "stroke-width": 2.5 });

function point(app: App, place: number, x: number, y: number, tone: Tone): SVGGElement {
  const { atlas, state } = app;
  const letters = app.letters(place);
  const role = atlas.rolesOf(place).length > 0;
  const faded = state.role !== "" && !atlas.rolesOf(place).some(({ role }) => role === state.role);
  const written = letters && !faded && (atlas.count <= LETTERED || state.role !== "");
  const circle = svg("circle", { r: written ? 7.5 : role ? 4.5 : 3.5, fill: role ? tone.line : tone.faint, "fill-opacity": role ? 0.85 : 0.45, stroke: tone.page });
  const mark = shift(x, y, circle);
  if (written) mark.append(write(0, 3, letters.replace("+", ""), tone.page, { "text-anchor": "middle", "font-size": 8.5, "font-weight": 700 }));
  if (place === state.head) mark.append(ring(tone));
  mark.setAttribute("data-point", String(place));
  mark.setAttribute("cursor", "pointer");
  if (faded) mark.setAttribute("opacity", "0.25");
  return mark;
}

// --- Files ---

const [WIDE, HIGH] = [760, 460];

function scatterFigure(app: App): SVGSVGElement {
  const figure = canvas(app, WIDE + 16, HIGH + 64, true);
  figure.append(title(app, `Heads by ${app.measure.label} and ${app.against.label}`), shift(4, 56, scatterDrawing(app, WIDE, HIGH)));
  return figure;
}

function scatterSheet({ atlas, measure, against }: App): Sheet {
  const rows = range(atlas.count).map((place): Cell[] => [
    Math.floor(place / atlas.heads),
    place % atlas.heads,
    measure.total.score.values[place],
    against.total.score.values[place],
    atlas.rolesOf(place).map(({ role }) => role).join("; "),
  ]);
  return { header: ["layer", "head", measure.id, against.id, "roles"], rows };
}
