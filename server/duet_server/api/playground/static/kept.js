// The picture with the patches of one segment, and a thumbnail of each segment to choose it.

import { plain } from "./numbers.js";
import { drawOverlay, isCropped } from "./overlay.js";

const THUMBNAIL = 240; // pixels across
const LEAST_WIDTH = 672; // pixels; in a smaller canvas, the edges of patches would blur

export class Kept {
  /** @param root the panel's element. `name` makes its radio buttons a group of their own. */
  constructor(root, name) {
    this.name = `segment-${name}`;
    this.canvas = root.querySelector(".view canvas");
    this.hint = root.querySelector(".view p");
    this.segments = root.querySelector(".segments");
    this.legend = root.querySelector("figcaption");
    this.chosen = 0;
  }

  /** @param plan a preview. Of a picture in tiles, only the view of the whole picture is drawn. */
  show(picture, plan) {
    const described = plan.patches.find(({ area }) => area);
    Object.assign(this, { picture, described, counts: plan.segments.map((segment) => segment.visual_tokens) });
    this.chosen = Math.min(this.chosen, described.segments.length - 1);
    if (this.segments.querySelectorAll("label").length !== described.segments.length) this.#makeChoices();
    described.segments.forEach((segment, idx) => this.#label(idx, segment));
    this.legend.querySelector(".outside").hidden = !isCropped(described);
    this.legend.querySelector(".tiles").hidden = plan.patches.length === 1;
    this.#toggle(true);
    this.#draw();
  }

  clear() {
    this.#toggle(false);
  }

  #toggle(shown) {
    this.hint.hidden = shown;
    for (const part of [this.canvas, this.segments, this.legend]) part.hidden = !shown;
  }

  #makeChoices() {
    this.segments.querySelectorAll("label").forEach((label) => label.remove());
    this.segments.append(...this.described.segments.map((_, idx) => this.#choice(idx)));
  }

  #choice(idx) {
    const label = document.createElement("label");
    const input = document.createElement("input");
    Object.assign(input, { type: "radio", name: this.name, className: "unseen", checked: idx === this.chosen });
    input.addEventListener("change", () => {
      this.chosen = idx;
      this.#draw();
    });
    const thumbnail = document.createElement("canvas");
    label.append(input, thumbnail, document.createElement("span"), document.createElement("b"));
    return label;
  }

  #label(idx, segment) {
    const label = this.segments.querySelectorAll("label")[idx];
    drawOverlay(label.querySelector("canvas"), this.picture.canvas, this.described, segment, THUMBNAIL);
    label.querySelector("span").textContent = layersOf(segment);
    label.querySelector("b").textContent = plain(this.counts[idx]);
  }

  #draw() {
    const segment = this.described.segments[this.chosen];
    const source = this.picture.canvas;
    drawOverlay(this.canvas, source, this.described, segment, Math.max(source.width, LEAST_WIDTH));
    const tokens = `${this.counts[this.chosen]} visual tokens`;
    this.canvas.setAttribute("aria-label", `${this.picture.name}: ${layersOf(segment)} hold ${tokens}.`);
  }
}

function layersOf({ layers: [start, end] }) {
  return end - start === 1 ? `Layer ${start}` : `Layers ${start}–${end - 1}`;
}
