// What is seen: everything that writes to the page.

import {drawChart} from "./chart.js";
import {formatMs, quantile} from "./statistics.js";

const ids = [
  "about", "accuracy", "app", "budget", "budget-text", "camera", "chart", "drop", "failed", "failure",
  "failure-advice", "failure-title", "failure-what", "file", "hint", "measure", "notice", "p50", "p90", "pause",
  "picture", "precision", "ranks", "ranks-summary", "rows", "status", "there", "threads", "threads-field", "title",
  "top", "variant",
];
export const view = Object.fromEntries(ids.map((id) => [id, document.getElementById(id)]));

const percent = (share) => `${(100 * share).toFixed(1)} %`;

export function say(text) {
  // Screen readers say it each time it is set.
  if (view.status.textContent !== text) view.status.textContent = text;
}

export function note(text) {
  view.notice.textContent = text;
}

/** Nothing works any more: say what happened and what to do, and hide the rest. */
export function showFailure(title, error) {
  view.app.hidden = true;
  view.status.textContent = "";
  view["failure-title"].textContent = title;
  view["failure-what"].textContent = error.message || String(error);
  view["failure-advice"].textContent = error.advice ?? "Reload this page; if this stays, use another browser.";
  view.failure.hidden = false;
}

export function showPicture(image) {
  Object.assign(view.picture, {width: image.width, height: image.height});
  view.picture.getContext("2d").putImageData(image, 0, 0);
  view.picture.setAttribute("aria-label", `Image of ${image.width} × ${image.height} pixels`);
  view.hint.hidden = true;
}

export function showTop(top) {
  while (view.top.children.length < top.length) {
    const row = document.createElement("li");
    row.append(...["span", "b", "i"].map((name) => document.createElement(name)));
    view.top.append(row);
  }
  top.forEach(({label, probability}, index) => {
    const [name, share, bar] = view.top.children[index].children;
    name.textContent = name.title = label;
    share.textContent = percent(probability);
    bar.style.width = `${100 * probability}%`;
    view.top.children[index].dataset.probability = probability;
  });
}

export function showBudget(budgetMs) {
  const text = budgetMs === null ? "none" : formatMs(budgetMs);
  view["budget-text"].textContent = text;
  view.budget.setAttribute("aria-valuetext", text);
}

/** The current variant and its place in the table. */
export function showVariant({current, failed}) {
  const ranks = Object.entries(current.ranks);
  const low = ranks.filter(([, rank]) => rank !== "dense").length;
  view.variant.textContent = current.name;
  view.accuracy.textContent = percent(current.accuracy);
  const form = low ? `${low} of ${ranks.length} layers low rank` : "dense";
  view.precision.textContent = `${current.precision}, ${form}`;
  view["ranks-summary"].textContent = `Ranks of ${ranks.length} layers`;
  view.ranks.replaceChildren(...ranks.map(([layer, rank]) => cell("li", `${layer}: ${rank}`)));
  view.failed.textContent = failed.length ? `Left out: ${failed.join("; ")}.` : "";
}

/** Times of the last runs: in numbers, in the chart, and what they make expected of the others. */
export function showTimes(classifier) {
  const times = classifier.history.current();
  view.p50.textContent = formatMs(quantile(times, 0.5));
  view.p90.textContent = formatMs(quantile(times, 0.9));
  drawChart(view.chart, classifier.history, classifier.budgetMs);
  const runs = `The last ${classifier.history.runs.length} runs`;
  view.chart.setAttribute("aria-label", `${runs}: p50 ${view.p50.textContent}, p90 ${view.p90.textContent}`);
  showRows(classifier);
}

function showRows(classifier) {
  const {manifest, measured, usable, current} = classifier;
  view.there.textContent = `On ${manifest.device.name}`;
  view.rows.replaceChildren(...manifest.variants.map((variant) => {
    const here = measured.get(variant.name);
    const known = usable.find(({name}) => name === variant.name);
    const row = document.createElement("tr");
    const name = Object.assign(cell("th", variant.name), {scope: "row"});
    row.append(name, ...[
      percent(variant.accuracy),
      `${(variant.size_bytes / 1e3).toFixed(0)} kB`,
      formatMs(variant.measured_ms?.p50),
      known ? formatMs(classifier.expectedMs(known)) : "not here",
      here ? `${formatMs(quantile(here, 0.5))}, p90 ${formatMs(quantile(here, 0.9))}` : "–",
    ].map((text) => cell("td", text)));
    if (variant.name === current.name) row.setAttribute("aria-current", "true");
    return row;
  }));
}

function cell(tag, text) {
  return Object.assign(document.createElement(tag), {textContent: text});
}

export function showAbout({manifest, stepMs}, version) {
  document.title = view.title.textContent = manifest.model;
  const alone = "one thread (more need https or 127.0.0.1, and COOP and COEP headers)";
  const threads = crossOriginIsolated ? "threads possible" : alone;
  view.about.textContent =
    `LiteRT.js ${version} on ${navigator.hardwareConcurrency} cores, ${threads}, ` +
    `timer step ${stepMs.toFixed(3)} ms.`;
}

export function showThreads(most) {
  view["threads-field"].hidden = most < 2;
  view.threads.replaceChildren(...Array.from({length: most}, (_, index) => new Option(index + 1)));
}

export function press(button, isPressed) {
  button.setAttribute("aria-pressed", String(isPressed));
}
