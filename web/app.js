// The page: knobs into questions, answers into bars. Everything is worked out by the package in the worker.
const $ = (id) => document.getElementById(id);
const GIB = 2 ** 30;
const NUMBERS = ["seq_len", "batch_size", "rank"];
const DEFAULTS = { gpu: "24GB", model: "meta-llama/Llama-3.1-8B", seq_len: "2048", batch_size: "1", rank: "16",
  method: "qlora", optimizer: "paged_adamw_8bit", gradient_checkpointing: "true" };
const WORDS = { fits: "fits", tight: "fits tightly", "does-not-fit": "does not fit", "will-not-run": "will not run",
  "cannot-say": "cannot say" };

const worker = new Worker("worker.js", { type: "module" });
const waiting = new Map();
let asked = 0;
worker.onmessage = ({ data }) => {
  if ("state" in data) $("state").textContent = data.state || "ready: Python in your browser, nothing is sent anywhere";
  else waiting.get(data.number)?.(data.answer), waiting.delete(data.number);
};
const ask = (name, words) => new Promise((answer) => {
  waiting.set(++asked, answer);
  worker.postMessage({ number: asked, ask: name, words });
});

const value = (id) => ($(id).type === "checkbox" ? String($(id).checked) : $(id).value.trim());
const put = (id, text) => { if ($(id).type === "checkbox") $(id).checked = text === "true"; else $(id).value = text; };
const element = (tag, text, name) => {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
};

const options = () => {
  const given = { method: value("method"), optimizer: value("optimizer"),
    gradient_checkpointing: $("gradient_checkpointing").checked };
  for (const id of NUMBERS) given[id] = Number(value(id));
  if (given.method !== "qlora") given.quant = "none";
  if (given.method === "full") delete given.rank;
  return given;
};
const question = () => ({ model: value("model"), gpu: value("gpu"), options: options() });

const command = () => {
  const words = ["qlora-plan", "estimate", value("model"), "--gpu", value("gpu")];
  for (const id of [...NUMBERS, "method", "optimizer"]) {
    if (value(id) !== DEFAULTS[id]) words.push(`--${id.replaceAll("_", "-")}`, value(id));
  }
  if (!$("gradient_checkpointing").checked) words.push("--no-gradient-checkpointing");
  return words.join(" ");
};

const remember = () => {
  const changed = Object.keys(DEFAULTS).filter((id) => value(id) !== DEFAULTS[id]);
  history.replaceState(null, "", `#${new URLSearchParams(changed.map((id) => [id, value(id)]))}`);
};
const recall = () => {
  for (const [id, text] of new URLSearchParams(location.hash.slice(1))) if (id in DEFAULTS) put(id, text);
};

const gib = (bytes) => (bytes === null ? "?" : (bytes / GIB).toFixed(2));
const bar = (phase, whole, usable) => {
  const line = element("div", undefined, "phase");
  const drawn = element("div", undefined, "bar");
  const parts = [["used", phase.allocated_bytes], ["kept", phase.reserved_bytes - phase.allocated_bytes],
    ["else", phase.device_bytes - phase.reserved_bytes]];
  for (const [name, bytes] of parts) {
    const part = element("i", undefined, name);
    part.style.width = `${(100 * Math.max(0, bytes)) / whole}%`;
    drawn.append(part);
  }
  const edge = element("span", undefined, "edge");
  edge.style.left = `${(100 * usable) / whole}%`;
  drawn.append(edge);
  drawn.title = `allocated ${gib(phase.allocated_bytes)}, cache ${gib(phase.reserved_bytes - phase.allocated_bytes)},`
    + ` CUDA ${gib(phase.device_bytes - phase.reserved_bytes)} GiB`;
  line.append(element("span", phase.name), drawn, element("span", `${gib(phase.device_bytes)} GiB`));
  return line;
};

const chance = (risk) => (risk === null ? "" : risk < 0.001 ? ", chance of running out below 0.1 %"
  : `, chance of running out ${risk > 0.999 ? "above 99.9" : (100 * risk).toFixed(1)} %`);

let latest = 0;
const show = async () => {
  const mine = ++latest;
  document.body.dataset.busy = "yes";
  remember();
  $("command").textContent = command();
  const answer = await ask("estimate", question());
  if (mine !== latest) return;
  document.body.dataset.busy = "";
  $("phases").replaceChildren();
  $("facts").textContent = (answer.notes ?? []).join("; ");
  if (answer.error) {
    $("verdict").className = "fault";
    $("verdict").textContent = answer.error;
    return;
  }
  $("verdict").className = answer.verdict;
  const unsure = answer.verdict === "does-not-fit" && answer.floor_bytes <= answer.usable_bytes;
  $("verdict").textContent = `${unsure ? "not sure enough to fit" : WORDS[answer.verdict]}: peak ${gib(answer.peak.device_bytes)} of`
    + ` ${gib(answer.usable_bytes)} GiB usable` + chance(answer.probability_oom);
  const phases = answer.phases.filter((phase) => phase.device_bytes !== null);
  const whole = Math.max(answer.usable_bytes * 1.05, ...phases.map((phase) => phase.device_bytes));
  $("phases").replaceChildren(...phases.map((phase) => bar(phase, whole, answer.usable_bytes)));
  const speed = answer.speed?.tokens_per_s;
  $("facts").textContent = [`needs at least ${gib(answer.floor_bytes)} GiB`,
    ...(speed ? [`about ${Math.round(speed).toLocaleString("en")} tokens/s`] : []), answer.recipe,
    ...answer.reasons, ...(answer.notes ?? [])].join("; ");
};

const frontier = async () => {
  const rows = $("frontier-table").tBodies[0];
  rows.replaceChildren();
  $("frontier-table").hidden = false;
  const { options: given, ...rest } = question();
  for (const seq_len of [512, 1024, 2048, 4096, 8192]) {
    const row = element("tr");
    row.append(element("td", seq_len.toLocaleString("en")), element("td", "…"));
    rows.append(row);
    const answer = await ask("longest_batch", { ...rest, options: given, seq_len });
    row.lastChild.textContent = answer.error ?? (answer.batch_size >= answer.most ? `${answer.most} or more` : answer.batch_size || "none");
  }
};

const survey = (card, rows) => {
  $("survey-table").tBodies[0].replaceChildren(...rows.map(([id, params, longest, peak]) => {
    const row = element("tr");
    const cell = element("td");
    const open = element("button", id);
    open.type = "button";
    open.onclick = () => { put("model", id); put("gpu", card); show(); $("model").focus(); };
    cell.append(open);
    row.append(cell, element("td", `${(params / 1e9).toFixed(1)} B`), element("td", longest?.toLocaleString("en") ?? "?"),
      element("td", gib(peak)));
    return row;
  }));
};

recall();
let pause;
$("knobs").addEventListener("input", () => { document.body.dataset.busy = "yes"; clearTimeout(pause); pause = setTimeout(show, 400); });
$("knobs").addEventListener("submit", (event) => { event.preventDefault(); show(); });
window.addEventListener("hashchange", () => { recall(); show(); });
$("frontier").onclick = frontier;
$("share").onclick = async () => {
  remember();
  try { await navigator.clipboard.writeText(location.href); $("shared").textContent = "copied"; }
  catch { $("shared").textContent = location.href; }
};
show();
const made = await (await fetch("survey.json")).json();
$("cards").replaceChildren(...made.cards.map((name) => element("option", name)));
$("models").replaceChildren(...made.models.map((name) => element("option", name)));
$("surveyed").replaceChildren(...Object.keys(made.survey).map((name) => element("option", name)));
$("surveyed").value = "24GB";
$("surveyed").onchange = () => survey($("surveyed").value, made.survey[$("surveyed").value]);
$("surveyed").onchange();
