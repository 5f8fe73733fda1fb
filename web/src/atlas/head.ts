// One head: its roles with their evidence, where it looks, the heads most like it, and every number.

import { el } from "../dom.ts";
import { type Cell, saveControls, type Sheet } from "../save.ts";
import { any, type App, type Changed, type Panel } from "./app.ts";
import { binName, classesDrawing, classesHeight, PROFILE_HEIGHT, profileDrawing } from "./charts.ts";
import { canvas, clip, shift, title, toneOf, write } from "./draw.ts";
import { claimsOf, type Evidence, EVIDENCE_HEIGHT, evidenceDrawing } from "./evidence.ts";
import { conditions, count, plural, show, showAs, signed, unitOf } from "./text.ts";

const NARROW = 300;
const WIDE = 560;
const OPEN = 2; // roles whose evidence is shown at once

export class HeadPanel implements Panel {
  readonly element: HTMLElement;
  private readonly title = el("h2", { id: "h-head", tabindex: -1 });
  private readonly body = el("div", {});
  private width = WIDE;

  constructor(private readonly app: App) {
    const save = saveControls(app, {
      what: "the head",
      part: () => `atlas-head-${app.atlas.name(app.state.head)}`,
      figure: () => headFigure(app),
      sheet: () => headSheet(app),
    });
    this.element = el(
      "section",
      { class: "panel", "aria-labelledby": "h-head" },
      el("div", { class: "panel-head" }, this.title, save),
      this.body,
    );
    this.draw();
  }

  update(changed: Changed): void {
    if (any(changed, "head", "theme", "measure")) this.draw();
  }

  /** Draw the charts as wide as the panel is, now and whenever it changes. */
  shown(): void {
    new ResizeObserver(() => {
      const width = Math.round(Math.min(WIDE, Math.max(NARROW, this.body.clientWidth)));
      if (width === this.width) return;
      this.width = width;
      this.draw();
    }).observe(this.body);
  }

  focus(): void {
    this.element.scrollIntoView({ block: "start" });
    this.title.focus({ preventScroll: true });
  }

  private draw(): void {
    const { app, width } = this;
    const { atlas, state } = app;
    const place = state.head;
    const { roles: claims, sink } = claimsOf(app, place);
    this.title.textContent = `Head ${atlas.name(place)}`;
    this.body.replaceChildren(
      el("p", { class: "head-summary" }, ...summary(app, place, claims)),
      ...roles(app, claims, sink, width),
      ...(atlas.data.profile ? [chart("How far it looks", "share of attention", app, width, PROFILE_HEIGHT, profileDrawing)] : []),
      ...(atlas.data.classes ? [chart("What kind of token it looks at", "share of attention", app, width, classesHeight(app), classesDrawing)] : []),
      ...(atlas.data.similar ? [similarHeads(app, place)] : []),
      everyNumber(app, place),
    );
  }
}

/** A sentence about the head. */
function summary(app: App, place: number, claims: Evidence[]): (Node | string)[] {
  const { atlas } = app;
  const held = claims.filter(({ holds }) => holds);
  const sink = atlas.sinkMeasure();
  const where = `Layer ${Math.floor(place / atlas.heads)}, head ${place % atlas.heads}. `;
  const role = held.length
    ? ["Holds ", held.length === 1 ? "the role " : `${held.length} roles: `, ...held.flatMap(({ label }, i) => [i ? ", " : "", el("b", {}, el("bdi", {}, label))]), ". "]
    : [el("b", {}, "No role found"), claims.length ? `: none of the ${plural(claims.length, "claim")} tested holds on held-out texts. ` : ". "];
  const share = sink?.total.score.values[place];
  const attention = share !== undefined && Number.isFinite(share) ? `${Math.round(100 * share)} % of its attention lies on sinks.` : "";
  return [where, ...role, attention];
}

function roles(app: App, claims: Evidence[], sink: Evidence | null, width: number): HTMLElement[] {
  const held = claims.filter(({ holds }) => holds);
  const others = claims.filter(({ holds }) => !holds);
  const intro = "A role is a claim that can be wrong: heads are chosen on one half of the texts and scored on the other.";
  const nearest = held.length ? [] : others.slice(0, 1);
  const rest = [...others.slice(nearest.length), ...(sink ? [sink] : [])];
  if (!claims.length) return [];
  return [
    el("p", { class: "caption" }, intro),
    ...held.slice(0, OPEN).map((evidence) => card(app, evidence, width)),
    ...(held.length > OPEN
      ? [el("details", {}, el("summary", {}, `${plural(held.length - OPEN, "more role")} of this head`), ...held.slice(OPEN).map((evidence) => card(app, evidence, width)))]
      : []),
    ...nearest.map((evidence) => card(app, evidence, width, "Nearest: ")),
    ...(rest.length ? [el("details", {}, el("summary", {}, `The other ${plural(rest.length, "claim")} tested`), claimTable(rest))] : []),
  ];
}

/** The evidence of one claim: a drawing, and its numbers with the marks that stand for them. */
function card(app: App, evidence: Evidence, width: number, before = ""): HTMLElement {
  const { measure, holds, chosen, held, low, high, baseline, control, raw, needed, n, texts } = evidence;
  const claim = measure.claim!;
  const inner = width - 26;
  const figure = canvas(app, inner, EVIDENCE_HEIGHT);
  figure.setAttribute("aria-hidden", "true");
  figure.append(evidenceDrawing(app, evidence, inner));
  const stat = (mark: string, name: string, value: string, more = "") =>
    el("div", { class: `stat ${mark}` }, el("dt", {}, name), el("dd", {}, value, more && el("small", {}, ` ${more}`)));
  return el(
    "div",
    { class: holds ? "claim holds" : "claim" },
    el("h3", {}, before && el("span", { class: "quiet" }, before), el("bdi", {}, evidence.label), " ", el("span", { class: "verdict" }, holds ? "holds" : "does not hold")),
    measure.definition && el("p", { class: "caption" }, measure.definition),
    figure,
    el(
      "dl",
      { class: "stats" },
      stat("mark-held", "held-out half", show(held), `${show(low)} to ${show(high)}`),
      stat("mark-chosen", "chosen half", show(chosen)),
      stat("mark-baseline", "baseline", show(baseline)),
      Number.isFinite(control) && stat("mark-control", "shuffled text", show(control)),
      stat("mark-threshold", "needed at least", show(needed)),
      stat("mark-none", "cases", count(n), `in ${plural(texts, "text")}`),
      Number.isFinite(raw) && stat("mark-none", "with the sink left in", show(raw)),
    ),
    el("p", { class: "caption" }, [`In ${unitOf(measure)}.`, `Baseline: ${measure.baselineName}.`, `Needed: ${conditions(claim)}. Source: ${claim.source}.`, ...measure.notes].join(" ")),
  );
}

function claimTable(claims: Evidence[]): HTMLElement {
  const columns = ["claim", "held-out", "95 % interval", "needed", "baseline", "shuffled", "n", ""];
  return el(
    "div",
    { class: "scroll-x" },
    el(
      "table",
      {},
      el("thead", {}, el("tr", {}, ...columns.map((name) => el("th", { scope: "col" }, name)))),
      el(
        "tbody",
        {},
        ...claims.map(({ label, held, low, high, baseline, control, needed, n, holds }) =>
          el(
            "tr",
            {},
            el("th", { scope: "row" }, el("bdi", {}, label)),
            ...[show(held), `${show(low)} to ${show(high)}`, show(needed), show(baseline), show(control), count(n), holds ? "holds" : ""].map((text) => el("td", {}, text)),
          ),
        ),
      ),
    ),
  );
}

function chart(name: string, unit: string, app: App, width: number, height: number, draw: typeof profileDrawing): HTMLElement {
  const figure = canvas(app, width, height);
  figure.setAttribute("role", "img");
  figure.setAttribute("aria-label", `${name}; the numbers are in the table below and in the CSV file`);
  figure.append(draw(app, app.state.head, width));
  return el("div", { class: "chart-block" }, el("h3", {}, name, " ", el("span", { class: "quiet" }, `${unit}; `, el("span", { class: "even-mark" }), " an even spread")), figure);
}

function similarHeads(app: App, place: number): HTMLElement {
  const { atlas } = app;
  const chips = atlas.similar(place).map(({ place: other, cosine }) => {
    const roles = atlas.rolesOf(other).map(({ role }) => role);
    return el(
      "button",
      { type: "button", class: "plain chip", "data-focus": `similar ${other}`, on: { click: () => app.set({ head: other }) } },
      el("b", {}, atlas.name(other)),
      ` ${cosine.toFixed(2)} `,
      roles.length ? el("bdi", { class: "quiet" }, roles[0] + (roles.length > 1 ? " +" : "")) : el("span", { class: "quiet" }, "no role"),
    );
  });
  return el(
    "div",
    { class: "chart-block" },
    el("h3", {}, "Most similar heads ", el("span", { class: "quiet" }, "cosine of their scores, each standardised over all heads")),
    el("div", { class: "chips" }, ...chips),
  );
}

function everyNumber(app: App, place: number): HTMLElement {
  const { measures, other } = app.atlas.data;
  const columns = ["measure", "score", "95 % interval", "baseline", ...(other ? ["the other", "change"] : [])];
  const rows = measures.map((measure, at) => {
    const { score, low, high } = measure.total;
    const there = measure.other?.score.values[place] ?? NaN;
    const as = (value: number) => showAs(measure, value);
    const numbers = [as(score.values[place]), `${as(low.values[place])} to ${as(high.values[place])}`, as(measure.baseline.values[place])];
    if (other) numbers.push(as(there), signed(there - score.values[place], measure));
    const pick = { type: "button", class: "word-button", "data-focus": `number ${at}`, title: "Colour the grid by this", on: { click: () => app.set({ measure: at }) } };
    return el(
      "tr",
      at === app.state.measure ? { class: "current" } : {},
      el("th", { scope: "row" }, el("button", pick, el("bdi", {}, measure.label))),
      ...numbers.map((text) => el("td", {}, text)),
    );
  });
  return el(
    "details",
    {},
    el("summary", {}, `All ${measures.length} measures of this head`),
    el("div", { class: "scroll-x" }, el("table", {}, el("thead", {}, el("tr", {}, ...columns.map((name) => el("th", { scope: "col" }, name)))), el("tbody", {}, ...rows))),
  );
}

// --- Files ---

const MARKS = ["filled: held-out half with its interval; ring: chosen half; red line: baseline;", "diamond: shuffled text; dashed line: needed for the role"];

function headFigure(app: App): SVGSVGElement {
  const { atlas, state } = app;
  const place = state.head;
  const tone = toneOf(app);
  const claims = claimsOf(app, place).roles;
  const held = claims.filter(({ holds }) => holds);
  const shownClaims = held.length ? held : claims.slice(0, 1);
  const parts: SVGElement[] = [];
  let y = 64;
  const heading = (text: string) => parts.push(write(16, (y += 12), text, tone.ink, { "font-size": 13, "font-weight": 600 }));
  const add = (drawing: SVGElement, height: number) => {
    parts.push(shift(16, (y += 10), drawing));
    y += height + 12;
  };
  for (const evidence of shownClaims) {
    const { label, held: score, low, high, baseline, holds, n } = evidence;
    heading(`${clip(label, 30)}: ${holds ? "" : "does not hold, "}${show(score)} (${show(low)} to ${show(high)}), baseline ${show(baseline)}, n ${count(n)}`);
    add(evidenceDrawing(app, evidence, WIDE - 32), EVIDENCE_HEIGHT);
  }
  if (shownClaims.length) for (const marks of MARKS) parts.push(write(16, (y += 14), marks, tone.faint, { "font-size": 11 }));
  y += 12;
  if (atlas.data.profile) {
    heading("Share of attention by distance");
    add(profileDrawing(app, place, WIDE - 32), PROFILE_HEIGHT);
  }
  if (atlas.data.classes) {
    heading("Share of attention by kind of token");
    add(classesDrawing(app, place, WIDE - 32), classesHeight(app));
  }
  const figure = canvas(app, WIDE, y + 4, true);
  figure.append(title(app, `Head ${atlas.name(place)}: ${held.map(({ label }) => label).join(", ") || "no role found"}`), ...parts);
  return figure;
}

function headSheet(app: App): Sheet {
  const { atlas, state } = app;
  const { measures, profile, classes } = atlas.data;
  const place = state.head;
  const rows: Cell[][] = [];
  const header = ["kind", "name", "unit", "score", "low", "high", "chosen half", "held-out half", "baseline", "shuffled text", "n", "texts", "role held"];
  measures.forEach((measure, at) => {
    const { total, chosen, scored, baseline, control } = measure;
    const numbers = [total.score, total.low, total.high, chosen.score, scored.score, baseline].map((tensor) => tensor.values[place]);
    const holds = atlas.rolesOf(place).some((role) => role.measure === at);
    rows.push(["measure", measure.id, measure.unit, ...numbers, control ? control.values[place] : null, total.n, total.texts, measure.claim && holds ? measure.claim.role : ""]);
  });
  const add = (kind: string, name: string, score: number, even: number | null) =>
    rows.push([kind, name, "share", score, null, null, null, null, even, null, null, null, ""]);
  profile?.bins.forEach((bin, i) => add("distance", binName(bin), profile.share.values[place * profile.bins.length + i], profile.even[i]));
  classes?.names.forEach((name, i) => {
    const at = place * classes.names.length + i;
    add("kind of token", name, classes.share.values[at], classes.even.values[at]);
  });
  return { header, rows };
}
