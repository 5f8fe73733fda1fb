// The text itself: click a token, and the others light up by how much it looks at them, or they at it.
// Two texts that are compared stand below one another, the same word of both followed at once.

import { type App, type Panel, show, times } from "./app.ts";
import { colour, css, ink } from "./colour.ts";
import { arrowStep, choice, el } from "./dom.ts";
import { legend } from "./legend.ts";
import { range, type Reading, sliceText } from "./reading.ts";
import { hideTip, tip } from "./tip.ts";

const TOGETHER = 400; // tokens of two texts that still fit below one another

interface Line {
  text: number;
  list: HTMLElement;
  spans: HTMLElement[];
}

export function textPanel(app: App): Panel {
  const title = el("h2", { id: "h-text" }, app.readings.length > 1 ? "The texts" : "The text");
  const tabs = el("div", {});
  const controls = el("div", { class: "controls" });
  const caption = el("p", { class: "caption", "aria-live": "polite" });
  const scale = el("div", { class: "legend-line" });
  const box = el("div", { class: "texts" });
  const element = el(
    "section",
    { class: "panel", "aria-labelledby": "h-text" },
    el("div", { class: "panel-head" }, title, tabs, controls),
    box,
    el("div", { class: "under" }, caption, scale),
  );
  const together = app.readings.length > 1 && app.readings.reduce((sum, r) => sum + r.length, 0) <= TOGETHER;
  let lines: Line[] = [];

  const build = () => {
    lines = (together ? range(app.readings.length) : [app.state.text]).map((text) => {
      const spans: HTMLElement[] = [];
      const list = layOut(app.readings[text], spans);
      listen(text, list, spans);
      return { text, list, spans };
    });
    box.replaceChildren(
      ...lines.map(({ text, list }) =>
        together ? el("div", { class: "text-line" }, el("span", { class: "text-number" }, text + 1), list) : list,
      ),
    );
  };

  const listen = (text: number, list: HTMLElement, spans: HTMLElement[]) => {
    const at = (event: Event) => {
      const target = (event.target as HTMLElement).closest?.<HTMLElement>("[data-token]");
      return target ? Number(target.dataset.token) : null;
    };
    list.addEventListener("click", (event) => {
      const token = at(event);
      if (token !== null) select(text, token);
    });
    list.addEventListener("pointermove", (event) => {
      const token = at(event);
      if (token === null || event.pointerType === "touch") hideTip();
      else tip(event.clientX, event.clientY, describe(text, token));
    });
    list.addEventListener("pointerleave", hideTip);
    list.addEventListener("keydown", (event) => {
      const token = at(event);
      if (token === null) return;
      if (event.key === "Enter" || event.key === " ") select(text, token);
      else if (event.key === "Escape") app.set({ token: null, other: null, grid: "maps" });
      else {
        const next = arrowStep(event.key, token, spans.length, lineLength(spans, token));
        if (next === token) return;
        spans[token].tabIndex = -1;
        spans[next].tabIndex = 0;
        spans[next].focus();
        app.say(describe(text, next).join(", "));
      }
      event.preventDefault();
    });
  };

  const select = (text: number, token: number) => {
    const same = text === app.state.text && token === app.state.token;
    app.set({ text, token: same ? null : token, other: null, grid: "maps" });
  };

  /** The token that is followed in a text: the selected one, or in the other text the same word. */
  const followed = (text: number): number | null => {
    const { token, text: active } = app.state;
    if (token === null || text === active) return token;
    const unit = app.reading.unitOf[token];
    const pair = app.page.comparison?.pairs.find((pair) => pair[active] === unit);
    return pair ? app.readings[text].units[pair[text]][0] : null;
  };

  const row = (text: number) => {
    const { direction, scope, layer, head } = app.state;
    const token = followed(text);
    return token === null ? null : app.readings[text].row(token, direction, scope, layer, head);
  };

  const describe = (text: number, token: number): string[] => {
    const reading = app.readings[text];
    const from = followed(text);
    const name = `${reading.spelled(token)} · token ${token}`;
    const piece = reading.data.tokens.text[token];
    const lines = [piece === reading.spelled(token) ? name : `${name} · ${piece}`];
    const weights = row(text);
    if (weights === null || from === null)
      return [...lines, `receives ${reading.receivedTimesEven(token).toFixed(2)}× an even share`];
    const [query, key] = app.state.direction === "from" ? [from, token] : [token, from];
    if (!reading.sees(query, key)) return [...lines, "not visible to it"];
    const even = 1 / reading.visible(query);
    const value = weights[token];
    return [
      ...lines,
      `${reading.spelled(query)} → ${reading.spelled(key)}`,
      Number.isNaN(value)
        ? "not among the strongest relations kept"
        : `${show(value)}  (even ${show(even)}, ${times(value, even)})`,
    ];
  };

  const shade = () => {
    const { state } = app;
    const none = state.token === null;
    const values = lines.map(({ text, spans }) => {
      const weights = row(text);
      return spans.map((_, token) =>
        weights ? weights[token] : none ? app.readings[text].receivedTimesEven(token) : NaN,
      );
    });
    const blank = (text: number, token: number) => state.hide && app.readings[text].apart.has(token);
    let high = 0;
    lines.forEach(({ text }, i) =>
      values[i].forEach((value, token) => {
        if (value > high && !blank(text, token)) high = value;
      }),
    );
    high = none ? Math.min(high, 4) : high || 1;
    lines.forEach(({ text, list, spans }, i) => {
      const [main, active] = [followed(text), text === state.text];
      list.classList.toggle("inactive", !active);
      spans.forEach((span, token) => {
        const empty = blank(text, token);
        const rgb = colour(state.theme, Number.isFinite(values[i][token]) ? values[i][token] : 0, high);
        span.style.setProperty("background-color", empty ? "" : css(rgb));
        span.style.setProperty("color", empty ? "" : ink(rgb));
        span.classList.toggle("hidden-token", empty);
        span.classList.toggle("selected", token === main);
        span.classList.toggle("partner", active && token === state.other);
        span.setAttribute("aria-selected", String(active && token === state.token));
      });
    });
    scale.replaceChildren(legend(state.theme, high, none ? "× an even share" : "share of attention"));
    caption.replaceChildren(...sentence(app));
  };

  const focusable = () => {
    for (const { text, spans } of lines) {
      const stop = followed(text) ?? 0;
      spans.forEach((span, token) => (span.tabIndex = token === stop ? 0 : -1));
    }
  };

  const showToken = () => {
    const line = lines.find((line) => line.text === app.state.text)!;
    if (app.state.token !== null) reveal(line.list, line.spans[app.state.token]);
  };

  const buttons = () => {
    const { state, page, reading } = app;
    tabs.replaceChildren();
    if (page.readings.length > 1 && !together)
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
      if (changed.has("text") && !together) build();
      buttons();
      shade();
      focusable();
      if (changed.has("token")) showToken();
    },
    shown: showToken,
  };
}

/** Scroll a long text so that a token is seen, and leave the page where it is. */
function reveal(list: HTMLElement, span: HTMLElement): void {
  if (span.offsetTop < list.scrollTop || span.offsetTop + span.offsetHeight > list.scrollTop + list.clientHeight)
    list.scrollTop = span.offsetTop - list.clientHeight / 2;
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
  const slice = sliceText(text);
  let end = 0;
  for (let token = 0; token < reading.length; token++) {
    const placed = tokens.end[token] > tokens.start[token] && !reading.special.has(token);
    const from = Math.max(tokens.start[token], end);
    let written = tokens.text[token];
    if (placed) {
      const whole = slice(from, tokens.end[token]);
      written = whole.trimStart() || whole;
      list.append(slice(end, from) + whole.slice(0, whole.length - written.length));
      end = Math.max(end, tokens.end[token]);
    } else if (token > 0) list.append(" ");
    const joins = token > 0 && tokens.word[token] >= 0 && tokens.word[token] === tokens.word[token - 1];
    const span = el(
      "span",
      {
        class: `token${placed ? "" : " special"}${joins ? " joins" : ""}${marked.has(token) ? " chosen" : ""}`,
        role: "option",
        tabindex: -1,
        "data-token": token,
      },
      // A line break is shown by its sign, and breaks the line after it; a further piece of one character as a dot.
      written.trim() ? written : written === "" ? "·" : /\n/.test(written) ? "↵" : "␣",
    );
    spans.push(span);
    list.append(span);
    if (placed && !written.trim() && /\n/.test(written)) list.append(written.replace(/[^\n]/g, ""));
    else if (!placed) list.append(" ");
  }
  return list;
}

function sentence(app: App): (Node | string)[] {
  const { state, reading } = app;
  const { token, other } = state;
  if (token === null)
    return [
      "Shaded by the attention each token receives over all layers and heads, as a multiple of what it would get " +
        "if every token spread its attention evenly. Click a token to follow it.",
    ];
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
      : ["Who looks at ", name, `: the share of each token’s attention on it, ${where}.`];
  if (other !== null && reading.exact) {
    const [query, key] = state.direction === "from" ? [token, other] : [other, token];
    const value = reading.weight(state.layer, state.head, query, key);
    parts.push(
      " ",
      el("b", {}, `${reading.spelled(query)} → ${reading.spelled(key)} ${show(value)}`),
      ` in head ${state.layer}.${state.head} (even: ${show(1 / reading.visible(query))}).`,
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
