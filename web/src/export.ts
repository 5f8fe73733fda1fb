// Save figures and tables as files: made here, nothing is sent anywhere.

export function offer(blob: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** A file name of the parts, with every character that a file system may refuse replaced. */
export const fileName = (ending: string, ...parts: (string | number)[]): string =>
  `${["limelight", ...parts].map((part) => String(part).replace(/[^\p{L}\p{N}._-]+/gu, "-")).join("-").slice(0, 120)}.${ending}`;

function standalone(figure: SVGSVGElement): { source: string; width: number; height: number } {
  const copy = figure.cloneNode(true) as SVGSVGElement;
  const { width, height } = figure.viewBox.baseVal;
  copy.setAttribute("width", String(width));
  copy.setAttribute("height", String(height));
  return { source: new XMLSerializer().serializeToString(copy), width, height };
}

export const saveSvg = (figure: SVGSVGElement, name: string): void =>
  offer(new Blob([standalone(figure).source], { type: "image/svg+xml" }), name);

/** Draw a figure at `scale` pixels per unit and save it. */
export async function savePng(figure: SVGSVGElement, name: string, scale = 2): Promise<void> {
  const { source, width, height } = standalone(figure);
  const image = new Image();
  image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(source);
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.getContext("2d")!.drawImage(image, 0, 0, canvas.width, canvas.height);
  const blob = await new Promise<Blob | null>((done) => canvas.toBlob(done, "image/png"));
  if (blob) offer(blob, name);
}

export type Cell = string | number | null;

/** A table as CSV (RFC 4180). A text that a spreadsheet would run as a formula is written behind an apostrophe. */
export function csv(rows: Cell[][]): string {
  const cell = (value: Cell): string => {
    if (value === null || (typeof value === "number" && !Number.isFinite(value))) return "";
    if (typeof value === "number") return String(value);
    const inert = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
    return /[",\r\n]/.test(inert) ? `"${inert.replaceAll('"', '""')}"` : inert;
  };
  return rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

/** Save a table, its first row the names of the columns. The byte order mark lets spreadsheets read it as UTF-8. */
export const saveCsv = (rows: Cell[][], name: string): void =>
  offer(new Blob(["\ufeff", csv(rows)], { type: "text/csv;charset=utf-8" }), name);
