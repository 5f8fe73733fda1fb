// A sequential scale, one lightness direction all the way, told apart in every kind of colour vision:
// from paper to deep blue on a light page, from the dark to limelight on a dark one.

export type Theme = "light" | "dark";
export type Rgb = [number, number, number];

const STOPS: Record<Theme, string[]> = {
  light: ["f6f4ec", "dfe6cf", "a9d0b8", "5aaeb0", "2b7fa3", "1f5186", "15264f"],
  dark: ["191a20", "1d2f55", "2a5578", "3f807c", "80a765", "cfca5c", "fff6b0"],
};

const parse = (hex: string): Rgb => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)) as Rgb;

const STEPS = 256;
const tables = Object.fromEntries(
  (Object.keys(STOPS) as Theme[]).map((theme) => {
    const stops = STOPS[theme].map(parse);
    const table: Rgb[] = [];
    for (let i = 0; i < STEPS; i++) {
      const at = (i / (STEPS - 1)) * (stops.length - 1);
      const left = Math.min(Math.floor(at), stops.length - 2);
      const part = at - left;
      table.push(stops[left].map((c, k) => Math.round(c + (stops[left + 1][k] - c) * part)) as Rgb);
    }
    return [theme, table];
  }),
) as Record<Theme, Rgb[]>;

/** Share of the scale for a value: the square root, so that small weights are seen beside large ones. */
export const position = (value: number, high: number): number =>
  high > 0 ? Math.sqrt(Math.min(Math.max(value / high, 0), 1)) : 0;

/** The colour at a share of the scale, from 0 to 1. */
export const shade = (theme: Theme, part: number): Rgb =>
  tables[theme][Math.round(Math.min(Math.max(part, 0), 1) * (STEPS - 1))];

export const colour = (theme: Theme, value: number, high: number): Rgb => shade(theme, position(value, high));

export const css = ([r, g, b]: Rgb): string => `rgb(${r} ${g} ${b})`;

export const hex = (rgb: Rgb): string => "#" + rgb.map((c) => c.toString(16).padStart(2, "0")).join("");

/** Ink that can be read on a colour. */
export function ink([r, g, b]: Rgb): string {
  const linear = [r, g, b].map((c) => ((c / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  return luminance > 0.2 ? "#14151a" : "#ffffff";
}
