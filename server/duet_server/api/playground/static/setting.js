// How much to remove: a slider for the reduction, and a button for each of the server's presets.

import { percent } from "./numbers.js";

export class Setting {
  /**
   * @param root the panel's element.
   * @param info the body of GET /v1/compression.
   * @param preset the preset to start with.
   * @param onChange called when the setting has changed.
   */
  constructor(root, info, preset, onChange) {
    this.presets = info.presets;
    this.slider = root.querySelector("input[type=range]");
    this.output = root.querySelector(".reduction");
    this.slider.max = info.limits.max_reduction;
    this.buttons = Object.keys(info.presets).map((name) => this.#button(name, onChange));
    root.querySelector(".presets").append(...this.buttons);
    this.slider.addEventListener("input", () => {
      this.#show(null);
      onChange();
    });
    this.#pick(preset);
  }

  /** The value of the `compression` field. */
  get compression() {
    const reduction = Number(this.slider.value);
    return this.preset ?? (reduction ? { reduction } : "off");
  }

  #button(name, onChange) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.addEventListener("click", () => {
      this.#pick(name);
      onChange();
    });
    return button;
  }

  #pick(name) {
    this.slider.value = this.presets[name].reduction;
    this.#show(name);
  }

  #show(preset) {
    this.preset = preset;
    const text = percent(preset ? this.presets[preset].reduction : this.slider.value);
    this.output.textContent = text === "0%" ? "off" : `−${text}`;
    this.slider.setAttribute("aria-valuetext", `${text} fewer visual tokens`);
    for (const button of this.buttons) button.setAttribute("aria-pressed", button.textContent === preset);
  }
}
