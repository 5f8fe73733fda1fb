// Any view as an SVG drawing: what stands on the page, with its colours and places, as rectangles, text and paths.

import type { Theme } from "./colour.ts";
import { svg } from "./dom.ts";
import { legendFigure } from "./legend.ts";

const FAMILY = "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif";
const SEEN = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-opacity", "font-size", "font-weight", "text-anchor", "visibility", "vector-effect"];

/**
 * Draw an element, without its controls: whole, but of what scrolls within it the lines that are in view. `title` stands
 * above it, `note` below, and the colour scale, if it has one.
 */
export function snapshot(element: HTMLElement, title: string, note: string, scale?: { theme: Theme; high: number }): SVGSVGElement {
  const frame = element.getBoundingClientRect();
  const style = getComputedStyle(element);
  const [margin, above] = [16, 34];
  const width = Math.max(Math.ceil(frame.width + 2 * margin), scale ? 440 : 0); // room for the scale
  const lines = wrap(note, (width - 2 * margin) / 5.9);
  const end = Math.ceil(element.scrollHeight + above + 12);
  const height = end + 15 * lines.length + 8 + (scale ? 32 : 0);
  const drawing = svg("svg", { xmlns: "http://www.w3.org/2000/svg", viewBox: `0 0 ${width} ${height}`, "font-family": FAMILY });
  const page = getComputedStyle(document.documentElement);
  const ink = (name: string) => page.getPropertyValue(name).trim();
  drawing.append(
    svg("title", {}, title),
    svg("rect", { width, height, fill: ink("--card") }),
    svg("text", { x: margin, y: 22, "font-size": 14, "font-weight": 650, fill: style.color }, title),
    ...lines.map((line, n) => svg("text", { x: margin, y: end + 12 + 15 * n, "font-size": 11, fill: ink("--faint") }, line)),
  );
  if (scale) drawing.append(legendFigure(scale.theme, scale.high, margin, height - 30, ink("--faint")));
  const inside = svg("g", { transform: `translate(${margin - frame.left + element.scrollLeft} ${above - frame.top + element.scrollTop})` });
  box(element, style, inside, null);
  drawWithin(element, style, inside, null);
  drawing.append(inside);
  return drawing;
}

/** Lines of at most so many characters. */
function wrap(text: string, most: number): string[] {
  const lines = [""];
  for (const word of text.split(" ")) {
    const last = lines[lines.length - 1];
    if (last && last.length + word.length >= most) lines.push(word);
    else lines[lines.length - 1] = last ? `${last} ${word}` : word;
  }
  return lines;
}

type View = DOMRect | null; // the part of the page that is in view, of something that scrolls

const isIn = (view: View, { top, bottom }: { top: number; bottom: number }): boolean =>
  !view || (top + bottom >= 2 * view.top && top + bottom <= 2 * view.bottom);

function draw(element: Element, into: SVGElement, view: View): void {
  const style = getComputedStyle(element);
  if (style.display === "none" || style.visibility === "hidden" || element.matches("[data-unsaved]")) return;
  if (element instanceof SVGSVGElement || element instanceof HTMLCanvasElement) {
    if (!isIn(view, element.getBoundingClientRect())) return;
    return into.append(element instanceof SVGSVGElement ? copyDrawing(element) : copyCanvas(element, style));
  }
  box(element, style, into, view);
  const scrolls = /auto|scroll/.test(style.overflowY) && element.scrollHeight > element.clientHeight;
  drawWithin(element, style, into, scrolls ? element.getBoundingClientRect() : view);
}

function drawWithin(element: Element, style: CSSStyleDeclaration, into: SVGElement, view: View): void {
  const closed = element instanceof HTMLDetailsElement && !element.open;
  for (const child of element.childNodes) {
    if (closed && !(child instanceof Element && child.matches("summary"))) continue;
    if (child instanceof Element) draw(child, into, view);
    else if (child instanceof Text && child.data.trim()) write(child, style, into, view);
  }
}

const clear = (colour: string): boolean => colour === "transparent" || /^rgba\(.*, 0\)$/.test(colour);

/** Background and outline of an element, one rectangle for each line that it stands on. */
function box(element: Element, style: CSSStyleDeclaration, into: SVGElement, view: View): void {
  const ring = /^(rgb\([^)]*\)|color\([^)]*\)) 0px 0px 0px ([\d.]+)px/.exec(style.boxShadow);
  const filled = !clear(style.backgroundColor);
  if (!filled && !ring) return;
  for (const { left, top, bottom, width, height } of element.getClientRects())
    if (isIn(view, { top, bottom })) into.append(
      svg("rect", {
        x: round(left), y: round(top), width: round(width), height: round(height), rx: Math.min(parseFloat(style.borderTopLeftRadius), height / 2) || null,
        fill: filled ? style.backgroundColor : "none", opacity: style.opacity === "1" ? null : style.opacity,
        stroke: ring && ring[1], "stroke-width": ring && ring[2],
      }),
    );
}

/** A text node, one element for each line. */
function write(node: Text, style: CSSStyleDeclaration, into: SVGElement, view: View): void {
  const range = document.createRange();
  const size = parseFloat(style.fontSize);
  for (const [from, to] of linesOf(node, range)) {
    range.setStart(node, from);
    range.setEnd(node, to);
    const { left, right, top, bottom } = range.getBoundingClientRect();
    const written = node.data.slice(from, to).trim();
    if (!written || right === left || !isIn(view, { top, bottom })) continue;
    const rtl = style.direction === "rtl";
    const look = { "font-size": size, "font-weight": style.fontWeight === "400" ? null : style.fontWeight, fill: style.color };
    const place = { x: round(rtl ? right : left), y: round((top + bottom) / 2 + size * 0.35), direction: rtl ? "rtl" : null };
    into.append(svg("text", { ...place, ...look }, written));
  }
}

/** Where the lines of a text node begin and end. */
function linesOf(node: Text, range: Range): [number, number][] {
  const { length } = node.data;
  range.selectNodeContents(node);
  if (new Set([...range.getClientRects()].map((rect) => Math.round(rect.top))).size < 2) return [[0, length]];
  const lines: [number, number][] = [];
  let top = NaN;
  for (let at = 0; at < length; at++) {
    range.setStart(node, at);
    range.setEnd(node, at + 1);
    const rect = range.getClientRects()[0];
    if (!rect || (!rect.width && /\s/.test(node.data[at]))) continue;
    if (Math.abs(rect.top - top) < 2) lines[lines.length - 1][1] = at + 1;
    else lines.push([at, at + 1]);
    top = rect.top;
  }
  return lines;
}

function copyCanvas(canvas: HTMLCanvasElement, style: CSSStyleDeclaration): SVGElement {
  const { left, top, width, height } = canvas.getBoundingClientRect();
  const place = { x: round(left), y: round(top), width: round(width), height: round(height) };
  const image = svg("image", { ...place, href: canvas.toDataURL(), preserveAspectRatio: "none", style: { "image-rendering": "pixelated" } });
  const ring = /^(rgb\([^)]*\)) 0px 0px 0px ([\d.]+)px/.exec(style.boxShadow);
  return svg("g", {}, image, ring && svg("rect", { ...place, fill: "none", stroke: ring[1], "stroke-width": ring[2] }));
}

/** A drawing of the page, with what its style sheet says written into its elements. */
function copyDrawing(drawing: SVGSVGElement): SVGElement {
  const { left, top, width, height } = drawing.getBoundingClientRect();
  const copy = drawing.cloneNode(true) as SVGSVGElement;
  const originals = drawing.querySelectorAll<SVGElement>("path, text, circle, rect");
  copy.querySelectorAll<SVGElement>("path, text, circle, rect").forEach((element, n) => {
    const style = getComputedStyle(originals[n]);
    for (const name of SEEN) element.setAttribute(name, style.getPropertyValue(name));
    element.removeAttribute("class");
  });
  for (const [name, value] of Object.entries({ x: left, y: top, width, height })) copy.setAttribute(name, String(round(value)));
  for (const name of ["class", "tabindex", "data-focus"]) copy.removeAttribute(name);
  return copy;
}

const round = (value: number): number => Math.round(value * 100) / 100;
