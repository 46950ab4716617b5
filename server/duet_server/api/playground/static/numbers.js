// Numbers as the page writes them.

const percentage = new Intl.NumberFormat("en", { style: "percent", maximumFractionDigits: 1 });
const count = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

export const percent = (share) => percentage.format(share);
export const plain = (value) => count.format(value);
export const short = (value) => compact.format(value).replace("B", "G"); // for FLOPs: giga (G), not billion (B)
export const duration = (ms) => (ms < 1000 ? `${Math.round(ms)}\u00a0ms` : `${(ms / 1000).toFixed(2)}\u00a0s`);
