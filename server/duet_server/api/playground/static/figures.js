// Tiles with the savings of a setting and the time to its first token.

import { duration, percent, plain, short } from "./numbers.js";

const NAMES = {
  first: "Time to first token",
  tokens: "Visual tokens saved",
  cache: "KV cache saved",
  compute: "Prefill FLOPs saved",
};

export class Figures {
  constructor(root) {
    this.tiles = Object.fromEntries(Object.entries(NAMES).map(([key, name]) => [key, tile(name)]));
    root.querySelector(".figures").append(...Object.values(this.tiles).map(({ element }) => element));
    this.clear();
  }

  clear() {
    for (const key of Object.keys(NAMES)) this.#set(key, "–", "");
  }

  forgetAnswer() {
    this.#set("first", "–", "");
  }

  /** @param plan the body of a preview. */
  showPlan({ compression, prefill_flops: flops }) {
    this.showUsage(compression);
    this.#set("compute", saved(flops.compressed, flops.uncompressed), of(short, flops.compressed, flops.uncompressed));
  }

  /** @param usage `usage.compression` of a response. */
  showUsage({ visual_tokens: tokens, kv_cache: cache }) {
    const [held, all] = [cache.token_layers, cache.token_layers_uncompressed];
    const [average, patches] = [tokens.layer_average, tokens.encoder];
    this.#set("tokens", saved(average, patches), `${of(plain, average, patches)} per layer`);
    this.#set("cache", saved(held, all), `${of(plain, held, all)} token-layers`);
  }

  showFirstToken(ms) {
    this.#set("first", duration(ms), "");
  }

  /** @param tokens the number of tokens in the answer. @param ms the time that it took. */
  showAnswer(tokens, ms) {
    this.tiles.first.detail.textContent = `${plain(tokens)} tokens in ${duration(ms)}`;
  }

  #set(key, value, detail) {
    this.tiles[key].value.textContent = value;
    this.tiles[key].detail.textContent = detail;
  }
}

const saved = (part, whole) => percent(whole ? 1 - part / whole : 0);
const of = (format, part, whole) => `${format(part)} of ${format(whole)}`;

function tile(name) {
  const [element, term, value, detail] = ["div", "dt", "dd", "dd"].map((tag) => document.createElement(tag));
  term.textContent = name;
  detail.className = "detail";
  element.append(term, value, detail);
  return { element, value, detail };
}
