// Times of the last runs, and what is said of them.

/** The value below which the share `q` lies, between neighbours interpolated; NaN of none. */
export function quantile(values, q) {
  if (values.length === 0) return NaN;
  const sorted = Float64Array.from(values).sort();
  const place = q * (sorted.length - 1);
  const below = Math.floor(place);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (place - below) * (sorted[above] - sorted[below]);
}

export const median = (values) => quantile(values, 0.5);

/** The last `size` runs, of whichever variants. */
export class History {
  constructor(size) {
    this.size = size;
    this.runs = []; // {ms, name}, the oldest first
    this.since = 0;
  }

  /** From here on another variant runs, or the same one in another way. */
  restart() {
    this.since = 0;
  }

  add(ms, name) {
    this.runs.push({ms, name});
    this.since++;
    if (this.runs.length > this.size) this.runs.shift();
  }

  /** Milliseconds of the runs since the last restart. */
  current() {
    return this.runs.slice(Math.max(0, this.runs.length - this.since)).map((run) => run.ms);
  }
}

/** The likeliest labels with their softmax, the likeliest first. */
export function likeliest(scores, labels, count = 5) {
  const top = Math.max(...scores);
  const odds = Array.from(scores, (score) => Math.exp(score - top));
  const sum = odds.reduce((a, b) => a + b, 0);
  return odds
    .map((odd, index) => ({label: labels[index], probability: odd / sum}))
    .sort((one, other) => other.probability - one.probability)
    .slice(0, count);
}

/** Three digits, as 0.123, 1.23, 12.3, 123. */
export function formatMs(ms) {
  if (!Number.isFinite(ms)) return "–";
  return `${ms >= 100 ? ms.toFixed(0) : ms.toPrecision(3)} ms`;
}
