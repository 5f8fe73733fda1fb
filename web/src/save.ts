// Save the head's figure as a drawing or a bitmap: made here, nothing is sent anywhere.

import type { App } from "./app.ts";
import { canDrawLines, drawFigure, drawLines } from "./figure.ts";

function offer(blob: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const fileName = (app: App, ending: string): string =>
  `limelight-${app.page.model.name.replace(/[^\w.-]+/g, "-")}-head-${app.state.layer}.${app.state.head}.${ending}`;

function picture(app: App): { source: string; width: number; height: number } {
  const lines = app.state.shape === "lines" && canDrawLines(app);
  const figure = lines ? drawLines(app, true) : drawFigure(app, true).figure;
  const { width, height } = figure.viewBox.baseVal;
  figure.setAttribute("width", String(width));
  figure.setAttribute("height", String(height));
  return { source: new XMLSerializer().serializeToString(figure), width, height };
}

export const saveSvg = (app: App): void =>
  offer(new Blob([picture(app).source], { type: "image/svg+xml" }), fileName(app, "svg"));

export async function savePng(app: App): Promise<void> {
  const { source, width, height } = picture(app);
  const image = new Image();
  image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(source);
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = width * 2;
  canvas.height = height * 2;
  canvas.getContext("2d")!.drawImage(image, 0, 0, canvas.width, canvas.height);
  const blob = await new Promise<Blob | null>((done) => canvas.toBlob(done, "image/png"));
  if (blob) offer(blob, fileName(app, "png"));
}
