// Bundles the page into ../static: the files that the agent serves (nodeagent/web/assets.py names them).
import { readFile, readdir, mkdir, rm, writeFile, copyFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const out = join(here, "..", "static");

await rm(out, { recursive: true, force: true });
await mkdir(out, { recursive: true });
const { metafile } = await build({
  absWorkingDir: here,
  entryPoints: { page: "src/main.ts" },
  outdir: out,
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  legalComments: "none", // the whole licences are in licenses.txt
  metafile: true,
  logLevel: "warning",
});
await build({ absWorkingDir: here, entryPoints: { page: "src/page.css" }, outdir: out, bundle: true, minify: true, logLevel: "warning" });
for (const name of ["index.html", "icon.svg"]) await copyFile(join(here, "src", name), join(out, name));
await writeFile(join(out, "licenses.txt"), await licences(Object.keys(metafile.inputs)));

/** The licences of all packages that files of the bundle come from: who passes the page on passes them on. */
async function licences(inputs) {
  const packages = new Set(inputs.map((path) => /^node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(path)?.[1]).filter(Boolean));
  const texts = await Promise.all(
    [...packages].sort().map(async (name) => {
      const folder = join(here, "node_modules", name);
      const { version } = JSON.parse(await readFile(join(folder, "package.json"), "utf8"));
      const file = (await readdir(folder)).find((entry) => /^licen[cs]e/i.test(entry));
      if (!file) throw new Error(`${name} ${version} has no licence to pass on`);
      return `${name} ${version}\n\n${(await readFile(join(folder, file), "utf8")).trim()}\n`;
    }),
  );
  return `The page holds code of these packages.\n\n${texts.join(`\n${"-".repeat(78)}\n\n`)}`;
}
