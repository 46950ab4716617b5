// The panel of one setting: the patches that it keeps, its savings, and its answer.

import { chat, preview } from "./api.js";
import { Figures } from "./figures.js";
import { Kept } from "./kept.js";
import { Setting } from "./setting.js";

const PAUSE_MS = 250; // from the last change until the engine is asked

export class Panel {
  /**
   * @param name a letter.
   * @param info the body of GET /v1/compression.
   * @param preset the preset to start with.
   * @param onChange called when the setting has changed.
   */
  constructor(name, info, preset, onChange) {
    this.name = name;
    this.root = document.getElementById("panel").content.firstElementChild.cloneNode(true);
    this.root.setAttribute("aria-label", `Setting ${name}`);
    this.root.querySelector("h2").textContent = `Setting ${name}`;
    this.error = this.root.querySelector(".error");
    this.text = this.root.querySelector(".text");
    this.setting = new Setting(this.root, info, preset, () => onChange(this));
    this.kept = new Kept(this.root, name);
    this.figures = new Figures(this.root);
    this.abort = new AbortController();
  }

  /** Show the setting's effect on a question, once changes have paused. Cancels the preview in progress. */
  async preview(question) {
    this.stop();
    const { signal } = (this.abort = new AbortController());
    this.stale = true;
    this.root.ariaBusy = "true";
    const failed = await this.#explaining(async () => {
      await pause(PAUSE_MS, signal);
      const plan = await preview(question.body(this.setting.compression), signal);
      this.kept.show(question.picture, plan);
      this.figures.showPlan(plan);
      this.stale = false;
    });
    if (signal.aborted) return; // a newer preview is in progress
    this.root.ariaBusy = "false";
    if (failed) this.#clear();
  }

  /** Cancel the preview in progress. */
  stop() {
    this.abort.abort();
    this.root.ariaBusy = "false";
  }

  forgetAnswer() {
    this.text.textContent = "";
    this.figures.forgetAnswer();
  }

  /** Stream the answer; returns the milliseconds to its first token, or undefined if there was none. */
  async ask(question, signal) {
    this.forgetAnswer();
    this.root.classList.add("asking");
    const start = performance.now();
    let first;
    await this.#explaining(async () => {
      for await (const { choices, usage } of chat(question.body(this.setting.compression), signal)) {
        signal.throwIfAborted(); // several chunks may arrive at once
        // vLLM sends its first chunk with the first token, even if that is not a whole character yet.
        if (first === undefined) this.figures.showFirstToken((first = performance.now() - start));
        this.text.append(choices[0]?.delta.content ?? "");
        if (usage) this.#finish(usage, performance.now() - start);
      }
    });
    this.root.classList.remove("asking");
    return first;
  }

  #finish(usage, ms) {
    this.figures.showAnswer(usage.completion_tokens, ms);
    if (usage.compression) this.figures.showUsage(usage.compression);
  }

  #clear() {
    this.kept.clear();
    this.figures.clear();
  }

  /** Run `act` and show its error, unless it was cancelled. Returns whether it failed. */
  async #explaining(act) {
    this.error.textContent = "";
    try {
      await act();
      return false;
    } catch (error) {
      if (error.name !== "AbortError") this.error.textContent = error.message;
      return true;
    }
  }
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    setTimeout(resolve, ms);
    signal.addEventListener("abort", () => reject(signal.reason));
  });
}
