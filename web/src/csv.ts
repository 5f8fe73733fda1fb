// Tables as CSV (RFC 4180), with a byte order mark so that spreadsheets read UTF-8.

export type Cell = string | number | null;

export interface Sheet {
  header: string[];
  rows: Cell[][];
}

/** One value. A text that a spreadsheet would run as a formula is kept from it by an apostrophe. */
function cell(value: Cell): string {
  if (value === null || (typeof value === "number" && !Number.isFinite(value))) return "";
  if (typeof value === "number") return String(Number(value.toPrecision(6)));
  const text = /^[=+\-@\t\r]./s.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

export const toCsv = ({ header, rows }: Sheet): string =>
  "\ufeff" + [header, ...rows].map((row) => row.map(cell).join(",") + "\r\n").join("");
