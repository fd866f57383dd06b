// Which variant to run: `choose` before it runs, `adapt` while it runs, by the rules of apps/README.md.

const p50 = (variant) => variant.measured_ms.p50;

/** The variants whose runtime is here and which ran on the device that the bundle was made for. */
export function reachable(variants, runtimes) {
  return variants.filter((variant) => runtimes.includes(variant.runtime) && variant.measured_ms !== null);
}

/** The highest accuracy; of equal ones the lowest p50, of equal ones the first listed; null of none. */
function best(variants) {
  const isBetter = (one, other) =>
    one.accuracy > other.accuracy || (one.accuracy === other.accuracy && p50(one) < p50(other));
  const betterOf = (found, variant) => (found === null || isBetter(variant, found) ? variant : found);
  return variants.reduce(betterOf, null);
}

/** The variant to begin with, null where none is left; `device`: `soc` and `memory_gib`, null where unknown. */
export function choose({variants, budgetMs, runtimes, choices = [], device = {}}) {
  const here = reachable(variants, runtimes);
  if (budgetMs !== null) return best(here.filter((variant) => p50(variant) <= budgetMs));
  for (const {soc, memory_gib: memory, runtime, variant: name} of choices) {
    if ((soc ?? device.soc) !== device.soc || (memory ?? 0) > (device.memory_gib ?? 0)) continue;
    const isNamed = (variant) => variant.name === name && (runtime ?? variant.runtime) === variant.runtime;
    const named = here.find(isNamed);
    if (named) return named;
  }
  return best(here);
}

/** The time of a variant on this device, where `current` takes `liveMs`. */
export function expectedMs(variant, current, liveMs) {
  return (p50(variant) / p50(current)) * liveMs;
}

/** The variant to go on with after runs of `liveMs` (median). */
export function adapt({variants, current, liveMs, budgetMs, hot, runtimes}) {
  const here = reachable(variants, runtimes);
  const limitMs = budgetMs ?? Infinity;
  const expected = (variant) => expectedMs(variant, current, liveMs);
  if (hot || liveMs > limitMs) {
    const within = here.filter((variant) => expected(variant) <= limitMs && !(hot && expected(variant) >= liveMs));
    const fasterOf = (found, variant) => (expected(variant) < expected(found) ? variant : found);
    return best(within) ?? here.reduce(fasterOf);
  }
  if (budgetMs === null) return current;
  const roomMs = 0.9 * budgetMs;
  const better = here.filter((variant) => variant.accuracy > current.accuracy && expected(variant) <= roomMs);
  return best(better) ?? current;
}
