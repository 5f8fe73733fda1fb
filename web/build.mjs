// Bundle each view and its style into the files that the Python package inlines.
import { createHash } from "node:crypto";
import { readFile, readdir, writeFile } from "node:fs/promises";

import { build, context } from "esbuild";

const target = "../src/limelight/microscope/page";
const options = {
  entryPoints: {
    view: "src/main.ts",
    "view-style": "src/view.css",
    atlas: "src/atlas/main.ts",
    "atlas-style": "src/atlas/atlas.css",
  },
  bundle: true,
  minify: true,
  charset: "utf8",
  format: "esm",
  target: ["es2022"],
  write: false,
  outdir: target,
  legalComments: "none",
};

// Written into the bundles, so that a test without node can tell a stale one.
async function digest() {
  const entries = await readdir("src", { recursive: true, withFileTypes: true });
  const names = entries.filter((e) => e.isFile()).map((e) => `${e.parentPath}/${e.name}`.replaceAll("\\", "/").slice(4));
  const sum = createHash("sha256");
  for (const name of names.sort()) sum.update(`${name}\0${await readFile(`src/${name}`, "utf8")}\0`);
  return sum.digest("hex");
}

async function save(result) {
  const note = `/* built from web/src ${await digest()} */\n`;
  for (const { path, text } of result.outputFiles) {
    // The bundle stands inside <script>: nothing in it may look like its end.
    if (/<\/script|<!--|<\/style/i.test(text)) throw new Error(`${path}: would end the element it stands in`);
    await writeFile(path.replace("-style.css", ".css"), note + text);
    console.log(path.split("/").pop(), text.length);
  }
}

if (process.argv.includes("--watch")) {
  const plugin = { name: "save", setup: (b) => b.onEnd((r) => (r.errors.length ? undefined : save(r))) };
  await (await context({ ...options, plugins: [plugin] })).watch();
} else {
  await save(await build(options));
}
