// Python beside the page: what it is asked it answers, one question after the other.
import { loadPyodide } from "./pyodide/pyodide.mjs";

const fetched = async (path) => {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response.arrayBuffer();
};
const say = (text) => postMessage({ state: text });

const ready = (async () => {
  const archives = fetch("archives.json").then((response) => response.json());
  const python = await loadPyodide({ indexURL: new URL("pyodide/", import.meta.url).href });
  say("unpacking models and cards");
  for (const { name, where } of await archives) {
    python.unpackArchive(await fetched(name), name.endsWith(".whl") ? "wheel" : "zip", where ? { extractDir: where } : {});
  }
  python.runPython(`
import os, sys
os.environ["QLORA_PLANNER_TRACE"] = "never"
sys.path[:0] = ["/app", "/app/web"]
try:
    import numpy
except ModuleNotFoundError:
    sys.path.append("/app/web/stand_in")
`);
  return { page: python.pyimport("page"), files: python.FS };
})();

let before = ready;
onmessage = ({ data }) => { before = before.then(() => answer(data), () => answer(data)); };

const answer = async ({ number, ask, words }) => {
  try {
    const { page, files } = await ready;
    const needed = page.needs(JSON.stringify(words));
    if (needed) files.writeFile(`/app/qlora_planner/_profiles/families/${needed}`, new Uint8Array(await fetched(`families/${needed}`)));
    postMessage({ number, answer: JSON.parse(page[ask](JSON.stringify(words))) });
  } catch (error) {
    postMessage({ number, answer: { error: String(error.message ?? error).trim().split("\n").pop() } });
  }
};
ready.then(() => say(""), (error) => say(`the planner could not be loaded: ${error.message ?? error}`));
