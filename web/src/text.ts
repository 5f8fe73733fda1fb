// The text itself: click a token, and the others light up by how much it looks at them, or they at it.

import { type App, type Panel, show, times } from "./app.ts";
import { colour, css, ink } from "./colour.ts";
import { arrowStep, choice, el } from "./dom.ts";
import { type Reading, sliceText } from "./reading.ts";
import { legend } from "./legend.ts";
import { hideTip, tip } from "./tip.ts";

export function textPanel(app: App): Panel {
  const tabs = el("div", {});
  const controls = el("div", { class: "controls" });
  const caption = el("p", { class: "caption", "aria-live": "polite" });
  const scale = el("div", { class: "legend-line" });
  const box = el("div", {});
  const element = el(
    "section",
    { class: "panel", "aria-labelledby": "h-text" },
    el("div", { class: "panel-head" }, el("h2", { id: "h-text" }, "The text"), tabs, controls),
    box,
    el("div", { class: "under" }, caption, scale),
  );
  let spans: HTMLElement[] = [];

  const build = () => {
    spans = [];
    const list = layOut(app.reading, spans);
    box.replaceChildren(list);
    const at = (event: Event) => {
      const target = (event.target as HTMLElement).closest?.<HTMLElement>("[data-token]");
      return target ? Number(target.dataset.token) : null;
    };
    list.addEventListener("click", (event) => {
      const token = at(event);
      if (token !== null) select(token);
    });
    list.addEventListener("pointermove", (event) => {
      const token = at(event);
      if (token === null || event.pointerType === "touch") hideTip();
      else tip(event.clientX, event.clientY, describe(token));
    });
    list.addEventListener("pointerleave", hideTip);
    list.addEventListener("keydown", (event) => {
      const token = at(event);
      if (token === null) return;
      if (event.key === "Enter" || event.key === " ") select(token);
      else if (event.key === "Escape") app.set({ token: null, other: null, grid: "maps" });
      else {
        const next = arrowStep(event.key, token, spans.length, lineLength(spans, token));
        if (next === token) return;
        spans[token].tabIndex = -1;
        spans[next].tabIndex = 0;
        spans[next].focus();
        app.say(describe(next).join(", "));
      }
      event.preventDefault();
    });
  };

  const select = (token: number) =>
    app.set(token === app.state.token ? { token: null, other: null, grid: "maps" } : { token, other: null, grid: "maps" });

  const row = () => {
    const { token, direction, scope, layer, head } = app.state;
    return token === null ? null : app.reading.row(token, direction, scope, layer, head);
  };

  const describe = (token: number): string[] => {
    const { state, reading } = app;
    const name = `${reading.spelled(token)} · token ${token}`;
    const piece = reading.data.tokens.text[token];
    const lines = [piece === reading.spelled(token) ? name : `${name} · ${piece}`];
    const weights = row();
    if (weights === null || state.token === null) {
      lines.push(`receives ${reading.receivedTimesEven(token).toFixed(2)}× an even share`);
      return lines;
    }
    const [query, key] = state.direction === "from" ? [state.token, token] : [token, state.token];
    if (!reading.sees(query, key)) return [...lines, "not visible to it"];
    const even = 1 / reading.visible(query);
    const value = weights[token];
    lines.push(`${reading.spelled(query)} → ${reading.spelled(key)}`);
    lines.push(
      Number.isNaN(value)
        ? "not among the strongest relations kept"
        : `${show(value)}  (even ${show(even)}, ${times(value, even)})`,
    );
    return lines;
  };

  const shade = () => {
    const { reading, state } = app;
    const weights = row();
    const blank = (token: number) => state.hide && reading.apart.has(token);
    let high = 0;
    const values = spans.map((_, token) => {
      const value = weights ? weights[token] : reading.receivedTimesEven(token);
      if (Number.isFinite(value) && !blank(token)) high = Math.max(high, value);
      return value;
    });
    high = weights ? high || 1 : Math.min(high, 4);
    spans.forEach((span, token) => {
      const rgb = colour(state.theme, Number.isFinite(values[token]) ? values[token] : 0, high);
      span.style.setProperty("background-color", blank(token) ? "" : css(rgb));
      span.style.setProperty("color", blank(token) ? "" : ink(rgb));
      span.classList.toggle("hidden-token", blank(token));
      span.classList.toggle("selected", token === state.token);
      span.classList.toggle("partner", token === state.other);
      span.setAttribute("aria-selected", String(token === state.token));
    });
    scale.replaceChildren(legend(state.theme, high, weights ? "share of attention" : "× an even share"));
    caption.replaceChildren(...sentence(app));
  };

  const focusable = () => {
    const stop = app.state.token ?? 0;
    spans.forEach((span, token) => (span.tabIndex = token === stop ? 0 : -1));
  };

  const buttons = () => {
    const { state, page, reading } = app;
    tabs.replaceChildren();
    if (page.readings.length > 1)
      tabs.append(
        choice("Which text", page.readings.map((_, i) => [String(i), `Text ${i + 1}`]), String(state.text), (i) =>
          app.showText(Number(i)),
        ),
      );
    controls.replaceChildren();
    if (state.token === null) return;
    controls.append(
      choice("Direction", [["from", "Where it looks"], ["to", "Who looks at it"]], state.direction, (direction) =>
        app.set({ direction }),
      ),
      choice(
        "Over which heads",
        [
          ["head", `Head ${state.layer}.${state.head}`],
          ["layer", reading.exact ? `Layer ${state.layer}, mean` : `Layer ${state.layer}, strongest`],
          ["all", "All, strongest"],
        ],
        state.scope,
        (scope) => app.set({ scope }),
      ),
    );
  };

  build();
  buttons();
  shade();
  focusable();
  return {
    element,
    update(changed) {
      if (changed.has("text")) build();
      buttons();
      shade();
      focusable();
      if (changed.has("token") && app.state.token !== null && changed.size > 0)
        spans[app.state.token].scrollIntoView?.({ block: "nearest" });
    },
  };
}

/** The text as it was written, every token an element that can be chosen. */
function layOut(reading: Reading, spans: HTMLElement[]): HTMLElement {
  const { tokens, text, chosen } = reading.data;
  const list = el("div", {
    class: reading.length > 600 ? "tokens many" : "tokens",
    role: "listbox",
    "aria-label": "Tokens of the text. Arrow keys move, Enter selects, Escape clears.",
  });
  const marked = new Set(chosen.flatMap((word) => reading.units[word]));
  let end = 0;
  for (let token = 0; token < reading.length; token++) {
    const placed = tokens.end[token] > tokens.start[token] && !reading.special.has(token);
    let from = Math.max(tokens.start[token], end);
    let written = placed ? sliceText(text, from, tokens.end[token]) : tokens.text[token];
    if (placed) {
      const lead = written.length - written.trimStart().length;
      const gap = sliceText(text, end, from) + (lead < written.length ? written.slice(0, lead) : "");
      if (lead < written.length) written = written.slice(lead);
      if (gap) list.append(gap);
      end = tokens.end[token];
    }
    const joins = token > 0 && tokens.word[token] >= 0 && tokens.word[token] === tokens.word[token - 1];
    const span = el(
      "span",
      {
        class: `token${placed ? "" : " special"}${joins ? " joins" : ""}${marked.has(token) ? " chosen" : ""}`,
        role: "option",
        tabindex: -1,
        "data-token": token,
      },
      written.trim() ? written : (tokens.text[token].trim() || "␣"),
    );
    spans.push(span);
    list.append(span);
    if (!placed && token === 0) list.append(" ");
    const next = token + 1 < reading.length && tokens.end[token + 1] <= tokens.start[token + 1];
    if (next) list.append(" ");
  }
  return list;
}

function sentence(app: App): (Node | string)[] {
  const { state, reading } = app;
  const { token, other } = state;
  if (token === null)
    return ["Shaded by the attention each token receives over all layers and heads, as a multiple of what it would get if every token spread its attention evenly. Click a token to follow it."];
  const name = el("b", {}, reading.spelled(token));
  const where =
    state.scope === "head"
      ? `head ${state.layer}.${state.head}`
      : state.scope === "layer"
        ? `layer ${state.layer}, ${reading.exact ? "mean over its heads" : "strongest of its heads"}`
        : "the strongest of all heads";
  const kept = reading.exact ? "" : " Unshaded: not among the strongest relations kept for a text of this length.";
  const parts: (Node | string)[] =
    state.direction === "from"
      ? ["Where ", name, ` looks: the share of its attention on each token, ${where}.`]
      : ["Who looks at ", name, `: the share of each token's attention on it, ${where}.`];
  if (other !== null && reading.exact) {
    const [query, key] = state.direction === "from" ? [token, other] : [other, token];
    const value = reading.weight(state.layer, state.head, query, key);
    const even = 1 / reading.visible(query);
    parts.push(
      " ",
      el("b", {}, `${reading.spelled(query)} → ${reading.spelled(key)} ${show(value)}`),
      ` in head ${state.layer}.${state.head} (even: ${show(even)}).`,
    );
  }
  return [...parts, kept];
}

/** How many tokens stand on the line of this one: what the up and down keys skip. */
function lineLength(spans: HTMLElement[], token: number): number {
  const top = spans[token].offsetTop;
  let from = token;
  let to = token;
  while (from > 0 && spans[from - 1].offsetTop === top) from--;
  while (to + 1 < spans.length && spans[to + 1].offsetTop === top) to++;
  return to - from + 1;
}
