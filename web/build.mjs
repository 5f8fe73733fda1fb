// Bundle src/main.ts and src/view.css into the two files that the Python package inlines.
import { build, context } from "esbuild";

const target = "../src/limelight/microscope/page";
const options = {
  entryPoints: { view: "src/main.ts", "view-style": "src/view.css" },
  bundle: true,
  minify: true,
  charset: "utf8",
  format: "esm",
  target: ["es2022"],
  write: false,
  outdir: target,
  legalComments: "none",
};

async function save(result) {
  const { writeFile } = await import("node:fs/promises");
  for (const { path, text } of result.outputFiles) {
    // The bundle stands inside <script>: nothing in it may look like its end.
    if (/<\/script|<!--|<\/style/i.test(text)) throw new Error(`${path}: would end the element it stands in`);
    await writeFile(path.replace("view-style.css", "view.css"), text);
    console.log(path.split("/").pop(), text.length);
  }
}

if (process.argv.includes("--watch")) {
  const plugin = { name: "save", setup: (b) => b.onEnd((r) => (r.errors.length ? undefined : save(r))) };
  await (await context({ ...options, plugins: [plugin] })).watch();
} else {
  await save(await build(options));
}
