// The last runs as a line over the budget's.

import {formatMs, quantile} from "./statistics.js";

const LABEL_PX = 12;

/** Draws {ms, name} of `history` into the canvas, as wide and high as its style makes it. */
export function drawChart(canvas, history, budgetMs) {
  const ratio = devicePixelRatio;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.font = `${LABEL_PX}px system-ui, sans-serif`;
  const colours = getComputedStyle(canvas);
  const colour = (name) => colours.getPropertyValue(name);
  const times = history.runs.map(({ms}) => ms);
  const usual = quantile(times, 0.95) || budgetMs || 1; // a slow run would press all others flat
  const top = 1.25 * Math.max(usual, budgetMs !== null && budgetMs < 3 * usual ? budgetMs : 0);
  const x = (index) => (index / (history.size - 1)) * width;
  const y = (ms) => height - 1 - (Math.min(ms, top) / top) * (height - 2 - LABEL_PX);

  context.fillStyle = colour("--soft");
  context.textBaseline = "top";
  if (times.length) context.fillText(formatMs(top), 0, 0);
  line(context, colour("--line"), [[0, y(0)], [width, y(0)]]);
  line(context, colour("--line"), [[0, y(top)], [width, y(top)]]);
  drawChanges(context, history, x, y(top) + 3, height, colour);
  line(context, colour("--accent"), times.map((ms, index) => [x(index), y(ms)]), 2);
  if (budgetMs !== null) {
    context.setLineDash([6, 4]);
    line(context, colour("--limit"), [[0, y(budgetMs)], [width, y(budgetMs)]], 2);
    context.setLineDash([]);
    context.fillStyle = colour("--limit");
    context.textAlign = "right";
    context.fillText(`budget ${formatMs(budgetMs)}${budgetMs > top ? " ↑" : ""}`, width, 0);
  }
}

/** A line where another variant began, and its name where there is room. */
function drawChanges(context, {runs}, x, top, height, colour) {
  let end = -Infinity;
  context.fillStyle = colour("--soft");
  runs.forEach(({name}, index) => {
    if (index === 0 || runs[index - 1].name === name) return;
    line(context, colour("--line"), [[x(index), top], [x(index), height]]);
    if (x(index) < end) return;
    context.fillText(name, x(index) + 3, top);
    end = x(index) + context.measureText(name).width + 9;
  });
}

function line(context, colour, points, width = 1) {
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.lineJoin = "round";
  context.beginPath();
  for (const [x, y] of points) context.lineTo(x, y);
  context.stroke();
}
