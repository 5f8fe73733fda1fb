// What the page of an atlas is given: `limelight.atlas.page` version 1, described in
// src/limelight/microscope/page/atlas_pack.py. N layers, H heads; a head's place is layer * H + head.

import { type Packed, type Tensor, unpackTables } from "../data.ts";

export interface PartOf<Numbers> {
  score: Numbers;
  low: Numbers;
  high: Numbers;
  n: number;
  texts: number;
}

export interface Claim {
  role: string;
  threshold: number;
  overBaseline: number;
  margin: number | null; // above the control
  source: string;
}

export interface Named {
  id: string;
  label: string;
  group: string;
  unit: string;
  definition: string;
  baselineName: string;
  notes: string[];
}

/** A measure of whole layers, or of the N + 1 states between them. */
export interface LayerMeasure extends Named {
  score: (number | null)[];
  low: (number | null)[];
  high: (number | null)[];
  baseline: (number | null)[];
  other: (number | null)[] | null;
}

export interface MeasureOf<Numbers> extends Named {
  claim: Claim | null;
  chosen: PartOf<Numbers>;
  scored: PartOf<Numbers>;
  total: PartOf<Numbers>;
  baseline: Numbers;
  control: Numbers | null;
  raw: Numbers | null;
  other: PartOf<Numbers> | null;
}

export interface Corpus {
  name: string;
  texts: number;
  tokens: number;
  complete: boolean;
  probes: { name: string; texts: number; tokens: number }[];
}

interface AtlasDataOf<Numbers> {
  format: string;
  version: number;
  model: { name: string; kind: string; layers: number; heads: number };
  other: { name: string; corpus: Corpus } | null;
  corpus: Corpus;
  notes: string[];
  sink: { measure: number; heads: number[] } | null;
  measures: MeasureOf<Numbers>[];
  layers: LayerMeasure[];
  roles: { head: number; role: string; measure: number; other: boolean }[];
  profile: { bins: [number, number][]; share: Numbers; even: (number | null)[] } | null;
  classes: { names: string[]; share: Numbers; even: Numbers } | null;
  similar: { head: Numbers; other: Numbers; cosine: Numbers } | null;
  examples: {
    vocabulary: string[];
    tokens: Numbers;
    starts: Numbers;
    window: Numbers;
    head: Numbers;
    text: Numbers;
    query: Numbers;
    key: Numbers;
    weight: Numbers;
  } | null;
  picture: { tokens: string[]; weights: Numbers } | null;
}

export type PackedAtlas = AtlasDataOf<Packed>;
export type AtlasData = AtlasDataOf<Tensor>;
export type Measure = MeasureOf<Tensor>;
export type Part = PartOf<Tensor>;

export async function unpackAtlas(text: string): Promise<AtlasData> {
  const page = JSON.parse(text) as PackedAtlas;
  if (page.format !== "limelight.atlas.page" || page.version !== 1)
    throw new Error(`this view reads limelight.atlas.page 1, the data is ${page.format} ${page.version}`);
  return (await unpackTables(page)) as AtlasData;
}
