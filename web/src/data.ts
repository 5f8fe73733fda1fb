// What the page is given: `limelight.page` version 1, described in src/limelight/microscope/page/pack.py.
// N layers, H heads, L tokens, U units (the words, then the tokens that belong to no word), T blocks per side.

import type { PictureOf } from "./pictures/data.ts";
import type { CrossOf } from "./sources/data.ts";
import type { WritingOf } from "./writing.ts";

export interface Packed {
  shape: number[];
  bits: 8 | 16 | 32;
  low: number;
  high: number;
  root: boolean;
  missing?: boolean; // the largest code stands for a number that is not known
  data: string;
}

export interface Tensor {
  shape: number[];
  values: Float32Array;
}

type HeadName = "entropy" | "strongest" | "distance" | "previous" | "own" | "next" | "apart";

interface ReadingOf<Numbers> {
  text: string;
  causal: boolean;
  keys: number | null; // that each query sees, where there are more than tokens: the silence behind a sound
  tokens: { text: string[]; start: number[]; end: number[]; word: number[]; special: number[]; apart: number[]; unknown: number[] };
  words: { text: string[]; mark: number[]; content: number[] };
  chosen: number[];
  map: {
    block: number;
    shares: Numbers;
    apart: Numbers | null;
    fine: { block: number; count: number[]; cells: Numbers; shares: Numbers; apart: Numbers } | null;
    rows: { tokens: number[]; keys: Numbers; weights: Numbers } | null;
  };
  relations: { each: number; keys: Numbers; heads: Numbers; weights: Numbers } | null;
  heads: Record<HeadName, number[]>;
  even: { entropy: number; distance: number; share: number };
  nearest: { units: Numbers; cosine: Numbers; mean: number[] } | null;
  norms: Numbers | null;
  offsets: { mean: Numbers; count: number[] };
  received: Numbers;
  path: Numbers;
  steps: Numbers;
  pathOfAll: number[];
}

interface PageOf<Numbers> {
  format: string;
  version: number;
  model: { name: string; kind: "encoder" | "decoder" | "encoder-decoder"; layers: number; heads: number };
  notes: string[];
  warnings: string[];
  chosenBy: string;
  readings: ReadingOf<Numbers>[];
  atlas?: { corpus: string; tokens: number; link: string | null; roles: [number, string[]][] }; // roles by layer * H + head
  writing?: (WritingOf<Numbers> | null)[];
  cross?: CrossOf<Numbers, PageOf<Numbers>>; // of an encoder-decoder
  pictures?: PictureOf<Numbers>[]; // of a model that reads pictures, one for each reading
  comparison: { pairs: [number, number][]; cosine: Numbers; baseline: number[]; baselinePairs: number } | null;
}

export type PackedPage = PageOf<Packed>;
export type Page = PageOf<Tensor>;
export type ReadingData = ReadingOf<Tensor>;

async function inflate(bytes: Uint8Array): Promise<ArrayBuffer> {
  const stream = new Blob([bytes as BlobPart]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

function fromBase64(data: string): Uint8Array {
  const text = atob(data);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

/** Undo `pack_numbers` of pack.py. Its integers are little-endian, as those of every machine that runs browsers. */
export async function unpack(packed: Packed): Promise<Tensor> {
  const raw = await inflate(fromBase64(packed.data));
  const codes = packed.bits === 8 ? new Uint8Array(raw) : packed.bits === 16 ? new Uint16Array(raw) : new Uint32Array(raw);
  const most = 2 ** packed.bits - 1;
  const valueOf = (code: number): number => {
    if (packed.missing && code === most) return NaN;
    const part = code / most;
    return packed.low + (packed.high - packed.low) * (packed.root ? part * part : part);
  };
  const values = new Float32Array(codes.length);
  if (packed.bits === 8) {
    const table = Float32Array.from({ length: 256 }, (_, code) => valueOf(code));
    for (let i = 0; i < values.length; i++) values[i] = table[codes[i]];
  } else for (let i = 0; i < values.length; i++) values[i] = valueOf(codes[i]);
  const expected = packed.shape.reduce((a, b) => a * b, 1);
  if (values.length !== expected) throw new Error(`a table of ${expected} numbers holds ${values.length}`);
  return { shape: packed.shape, values };
}

const isPacked = (value: unknown): value is Packed =>
  typeof value === "object" && value !== null && "data" in value && "bits" in value;

/** Unpack every table of a page's data, wherever it stands. */
export async function unpackTables(value: unknown): Promise<unknown> {
  if (isPacked(value)) return unpack(value);
  if (Array.isArray(value)) return typeof value[0] === "object" ? Promise.all(value.map(unpackTables)) : value;
  if (typeof value !== "object" || value === null) return value;
  const entries = await Promise.all(Object.entries(value).map(async ([k, v]) => [k, await unpackTables(v)] as const));
  return Object.fromEntries(entries);
}

export async function unpackPage(text: string): Promise<Page> {
  const page = JSON.parse(text) as PackedPage;
  if (page.format !== "limelight.page" || page.version !== 1)
    throw new Error(`this view reads limelight.page 1, the data is ${page.format} ${page.version}`);
  return (await unpackTables(page)) as Page;
}
