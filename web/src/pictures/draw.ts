// A picture under weights: lit where they are large, or tinted by them.

import { colour, css, type Theme } from "../colour.ts";
import type { Veil } from "../app.ts";
import type { Picture } from "./data.ts";

const DARKEST = 0.88; // how much of the picture the dark takes where nothing looks

/** Draw the picture at a width in pixels, under the weights of its parts. */
export function drawPicture(canvas: HTMLCanvasElement, picture: Picture, width: number, row: Float32Array | null, veil: Veil, theme: Theme): void {
  const { data, cellRows, cellColumns } = picture;
  canvas.width = Math.round(width);
  canvas.height = Math.max(1, Math.round((width * data.height) / data.width));
  const paint = canvas.getContext("2d")!;
  paint.imageSmoothingQuality = "high";
  paint.drawImage(picture.canvas, 0, 0, canvas.width, canvas.height);
  if (!row || veil === "none") return;
  const high = picture.high(row);
  for (let i = 0; i < cellRows; i++)
    for (let j = 0; j < cellColumns; j++) {
      const value = row[picture.partAt(i, j)];
      const lit = Math.sqrt(Math.min(1, value / high));
      paint.fillStyle = veil === "light" ? `rgb(8 9 14 / ${(DARKEST * (1 - lit)).toFixed(3)})` : css(colour(theme, value, high)).replace(")", " / 0.8)");
      const { left, top, right, bottom } = cellBox(picture, canvas.width, canvas.height, i, j);
      paint.fillRect(left, top, right - left, bottom - top);
    }
}

/** Where a cell lies, in whole pixels, so that neighbours neither overlap nor leave a gap. */
export function cellBox({ data }: Picture, width: number, height: number, i: number, j: number) {
  const x = (column: number) => Math.round((Math.min(column * data.join, data.columns) / data.columns) * width);
  const y = (row: number) => Math.round((Math.min(row * data.join, data.rows) / data.rows) * height);
  return { left: x(j), top: y(i), right: x(j + 1), bottom: y(i + 1) };
}
