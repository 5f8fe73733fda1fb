// Save the head's figure as a drawing or a bitmap: made here, nothing is sent anywhere.

import type { App } from "./app.ts";
import { drawFigure, SIDE } from "./figure.ts";

function offer(blob: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const fileName = (app: App, ending: string): string =>
  `limelight-${app.page.model.name.replace(/[^\w.-]+/g, "-")}-head-${app.state.layer}.${app.state.head}.${ending}`;

const source = (app: App): string => new XMLSerializer().serializeToString(drawFigure(app, true).figure);

export const saveSvg = (app: App): void =>
  offer(new Blob([source(app)], { type: "image/svg+xml" }), fileName(app, "svg"));

export async function savePng(app: App): Promise<void> {
  const picture = new Image();
  picture.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(source(app));
  await picture.decode();
  const canvas = document.createElement("canvas");
  canvas.width = SIDE * 2;
  canvas.height = (SIDE + 34) * 2;
  canvas.getContext("2d")!.drawImage(picture, 0, 0, canvas.width, canvas.height);
  const blob = await new Promise<Blob | null>((done) => canvas.toBlob(done, "image/png"));
  if (blob) offer(blob, fileName(app, "png"));
}
