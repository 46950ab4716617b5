// The page: asks a question about a picture under one or two settings.

import { getInfo, readKey, writeKey } from "./api.js";
import { duration } from "./numbers.js";
import { Panel } from "./panel.js";
import { readPicture, toPicture } from "./picture.js";
import { drawSample } from "./sample.js";

const find = (...ids) => ids.map((id) => document.getElementById(id));
const [model, notice, place] = find("model", "notice", "panels");
const [form, file, image, sample, question, submit] = find("ask", "file", "picture", "sample", "question", "submit");
const [trouble, status, compare, more, key, length] = find("trouble", "status", "compare", "more", "key", "length");

let info = null;
let picture = null;
let panels = []; // always both; `shown()` returns the visible ones
let asking = null; // the AbortController of the question that is being answered

const shown = () => panels.slice(0, compare.checked ? 2 : 1);

async function start() {
  trouble.textContent = "";
  try {
    info = await getInfo();
  } catch (error) {
    trouble.textContent = error.message;
    more.open ||= error.status === 401;
    return;
  }
  model.textContent = info.model;
  const unsupported = info.supported ? "" : `${info.model} is served without compression: there is nothing to show.`;
  notice.textContent = [info.notice, unsupported].filter(Boolean).join(" ");
  notice.hidden = !notice.textContent;
  form.hidden = !info.supported;
  if (!info.supported) return;
  const names = Object.keys(info.presets);
  const first = names.includes("balanced") ? "balanced" : names.at(-1);
  panels = [new Panel("A", info, first, changed), new Panel("B", info, "off", changed)];
  showPanels();
}

function showPanels() {
  place.replaceChildren(...shown().map((panel) => panel.root));
  shown().filter((panel) => panel.stale !== false).forEach(changed);
}

/** The picture and the question as they are now. */
function currentQuestion() {
  const content = [
    { type: "image_url", image_url: { url: picture.url } },
    { type: "text", text: question.value },
  ];
  const fields = {
    model: info.model,
    messages: [{ role: "user", content }],
    max_tokens: Number(length.value),
    temperature: 0,
    cache_salt: String(Math.random()), // keeps the prefix cache out: both settings must do the prefill
  };
  return { picture, body: (compression) => ({ ...fields, compression }) };
}

/** The panel's setting, the picture or the question has changed. */
function changed(panel) {
  asking?.abort();
  panel.forgetAnswer();
  if (picture && question.value.trim()) panel.preview(currentQuestion());
}

function changedForAll() {
  panels.forEach((panel) => (panel.stale = true));
  shown().forEach(changed);
}

async function ask() {
  const own = (asking = new AbortController());
  submit.textContent = "Stop";
  trouble.textContent = "";
  const current = currentQuestion();
  panels.forEach((panel) => panel.stop());
  shown().forEach((panel) => panel.forgetAnswer());
  const firsts = await askInTurn(current, own.signal);
  status.textContent = own.signal.aborted ? "Stopped." : firsts.join(" ");
  asking = null;
  submit.textContent = "Ask";
  shown().filter((panel) => panel.stale).forEach((panel) => panel.preview(currentQuestion()));
}

/** Ask the settings one after the other; returns a sentence for each. */
async function askInTurn(current, signal) {
  const firsts = [];
  for (const panel of shown()) {
    if (signal.aborted) break;
    status.textContent = `${panel.name} is answering…`;
    panel.text.scrollIntoView({ block: "nearest" });
    const first = await panel.ask(current, signal);
    firsts.push(first ? `${panel.name}: first token after ${duration(first)}.` : `${panel.name}: no answer.`);
  }
  return firsts;
}

async function take(source) {
  trouble.textContent = "";
  try {
    picture = await source();
  } catch (error) {
    trouble.textContent = error.message;
    return;
  }
  Object.assign(image, { src: picture.url, alt: picture.name, hidden: false });
  changedForAll();
}

function takeFile([first]) {
  if (first) take(() => readPicture(first));
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (asking) asking.abort();
  else if (!panels.length) start();
  else if (!picture) trouble.textContent = "Choose, drop or paste a picture first, or use the sample.";
  else ask();
});
question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
question.addEventListener("input", changedForAll);
file.addEventListener("change", () => {
  takeFile(file.files);
  file.value = ""; // otherwise the same file could not be chosen again
});
sample.addEventListener("click", () => take(async () => toPicture(drawSample(), "Sample picture", "image/png")));
document.addEventListener("paste", ({ clipboardData }) => {
  if (!clipboardData.types.includes("text/plain")) takeFile(clipboardData.files);
});
document.addEventListener("dragover", (event) => {
  if (!event.dataTransfer.types.includes("Files")) return; // text that is dragged into a field
  event.preventDefault();
  form.classList.add("dragging");
});
document.addEventListener("dragleave", (event) => event.relatedTarget ?? form.classList.remove("dragging"));
document.addEventListener("drop", (event) => {
  if (!event.dataTransfer.files.length) return;
  event.preventDefault();
  form.classList.remove("dragging");
  takeFile(event.dataTransfer.files);
});
compare.addEventListener("change", () => {
  asking?.abort();
  showPanels();
});
key.addEventListener("change", () => {
  writeKey(key.value.trim());
  if (panels.length) shown().forEach(changed);
  else start();
});

key.value = readKey();
compare.checked = matchMedia("(min-width: 60rem)").matches;
start();
