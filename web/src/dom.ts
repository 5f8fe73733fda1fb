// Elements without markup: text goes in as text, styles as properties, so no text of a user can become code.

type Child = Node | string | number | null | undefined | false;
type Properties = Record<string, unknown> & {
  class?: string;
  on?: Record<string, (event: never) => void>;
  style?: Record<string, string>;
};

const SVG = "http://www.w3.org/2000/svg";

function fill<E extends Element & ElementCSSInlineStyle>(element: E, properties: Properties, children: Child[]): E {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on")
      for (const [type, listener] of Object.entries(properties.on!))
        element.addEventListener(type, listener as EventListener);
    else if (name === "style")
      for (const [key, text] of Object.entries(properties.style!)) element.style.setProperty(key, text);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children)
    if (child !== null && child !== undefined && child !== false)
      element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  return element;
}

export const el = <K extends keyof HTMLElementTagNameMap>(
  tag: K,
  properties: Properties = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] => fill(document.createElement(tag), properties, children);

export const svg = <K extends keyof SVGElementTagNameMap>(
  tag: K,
  properties: Properties = {},
  ...children: Child[]
): SVGElementTagNameMap[K] => fill(document.createElementNS(SVG, tag), properties, children);

/** A row of buttons of which one is pressed. */
export function choice<T extends string>(
  label: string,
  options: [T, string][],
  current: T,
  pick: (value: T) => void,
): HTMLElement {
  return el(
    "div",
    { class: "choice", role: "group", "aria-label": label },
    ...options.map(([value, text]) =>
      el(
        "button",
        {
          type: "button",
          "aria-pressed": String(value === current),
          "data-focus": `${label} ${value}`,
          on: { click: () => pick(value) },
        },
        text,
      ),
    ),
  );
}

/** Move the focus with the arrow keys among things laid out in rows of `columns`. */
export function arrowStep(key: string, at: number, count: number, columns: number): number {
  const step: Record<string, number> = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns };
  if (key === "Home") return 0;
  if (key === "End") return count - 1;
  const to = at + (step[key] ?? 0);
  return to >= 0 && to < count ? to : at;
}

/** Redraw, and give the focus back to what stands in the place of the element that had it. */
export function keepFocus(draw: () => void): void {
  const had = document.activeElement;
  const key = had?.getAttribute("data-focus");
  draw();
  if (!key || had!.isConnected) return;
  const same = [...document.querySelectorAll<HTMLElement>("[data-focus]")].find((e) => e.dataset.focus === key);
  same?.focus({ preventScroll: true });
}
