// The page: reads the bundle, then runs one image or the camera's frames again and again, and does in between what
// was asked for. One thing at a time, so that nothing else is timed.

import {BundleError, loadFile, loadManifest, Unreachable} from "./bundle.js";
import {Classifier} from "./classifier.js";
import {register} from "./offline.js";
import {Camera, readPicture} from "./pictures.js";
import {prepare} from "./prepare.js";
import {likeliest} from "./statistics.js";
import * as show from "./view.js";
import {view} from "./view.js";

const wishes = []; // what was asked for, done between two runs
const camera = new Camera();
let classifier = null;
let input = null; // what is fed
let isPaused = false;
let range = null; // milliseconds at the two ends of the slider
let hasFailed = false;
let paintedAt = -Infinity;

const PAINT_MS = 150; // more often, the page would take time from what is timed

// rAF: no more runs than are seen, and none while the page is hidden.
const frame = () => new Promise(requestAnimationFrame);

async function loadRuntime() {
  if (typeof WebAssembly === "undefined") {
    const advice = "Allow it in the settings, or use another browser: any of 2022 or later has it.";
    throw new BundleError("This browser runs no WebAssembly.", advice);
  }
  try {
    const [program, measuring] = await Promise.all([import("./build/program.js"), import("./build/measure.js")]);
    await program.loadRuntime(1);
    const {version} = await (await fetch("build/litert/package.json")).json();
    return {program, measuring, version};
  } catch (error) {
    const advice = "Run `make web-app` where this page is served from; else use a browser of 2022 or later.";
    throw new BundleError(`LiteRT.js cannot be loaded (${error.message ?? error.type ?? error}).`, advice);
  }
}

/** Milliseconds at a place of the slider, equal steps being equal factors; none at its right end. */
function budgetAt(place) {
  const [least, most] = range;
  return place === 100 ? null : least * (most / least) ** (place / 99);
}

/** From half of the fastest to twice the slowest, as far as is known here; not moved once it was used. */
function setRange() {
  if (classifier.budgetMs !== null) return;
  const times = classifier.usable.map((variant) => classifier.expectedMs(variant));
  range = [0.5 * Math.min(...times), 2 * Math.max(...times)];
}

async function applyBudget() {
  const budgetMs = budgetAt(view.budget.valueAsNumber);
  show.showBudget(budgetMs);
  await classifier.setBudget(budgetMs);
}

function feed(image) {
  input = prepare(image, classifier.manifest.input);
  show.showPicture(image);
  view.pause.disabled = false;
}

async function showFile(file) {
  if (!file) return;
  try {
    const image = await readPicture(file);
    stopCamera();
    feed(image);
    show.note("");
  } catch (error) {
    show.note(`${error.message}.`);
  }
}

function stopCamera() {
  camera.stop();
  show.press(view.camera, false);
}

async function switchCamera() {
  if (camera.isOn) return stopCamera();
  try {
    await camera.start();
    show.press(view.camera, true);
    show.note("");
  } catch (error) {
    show.note(`${error.message}.`);
  }
}

async function measureAll() {
  view.measure.disabled = true;
  try {
    await classifier.measureAll({say: show.say, rest: frame});
  } catch (error) {
    if (error instanceof BundleError) throw error;
    show.note(`Not measured: ${error.message ?? error}.`);
  } finally {
    view.measure.disabled = false;
  }
}

function listen() {
  const on = (element, type, wish) => element.addEventListener(type, () => wishes.push(wish));
  on(view.budget, "input", applyBudget);
  on(view.threads, "change", () => classifier.setThreads(Number(view.threads.value)));
  on(view.measure, "click", measureAll);
  on(view.camera, "click", switchCamera);
  on(window, "resize", () => null); // what is wished for is followed by a repaint
  on(view.file, "change", () => showFile(view.file.files[0]));
  view.pause.addEventListener("click", () => {
    isPaused = !isPaused;
    show.press(view.pause, isPaused);
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    view.drop.classList.add("over");
  });
  document.addEventListener("dragleave", () => view.drop.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    view.drop.classList.remove("over");
    const file = event.dataTransfer.files[0];
    wishes.push(() => showFile(file));
  });
}

/** Read what may be wanted without a network, and so find what is damaged, before it is wanted. */
async function readAll() {
  if (navigator.connection?.saveData) return;
  try {
    for (const variant of classifier.usable) await loadFile(variant);
  } catch (error) {
    if (!(error instanceof Unreachable)) throw error;
  }
}

async function step() {
  const before = classifier.current;
  const hadWishes = wishes.length > 0;
  while (wishes.length) await wishes.shift()();
  const isRunning = !isPaused && (camera.isOn || input !== null);
  let scores = null;
  if (isRunning) {
    if (camera.isOn) feed(camera.frame());
    scores = await classifier.classify(input);
    await classifier.adapt();
    setRange();
  }
  const hasChanged = hadWishes || classifier.current !== before;
  if (hasChanged || (isRunning && performance.now() - paintedAt > PAINT_MS)) paint(scores);
  show.say(isRunning ? "Running." : isPaused ? "Paused." : "Ready: drop or choose an image, or start the camera.");
}

function paint(scores) {
  if (scores) show.showTop(likeliest(scores, classifier.manifest.labels));
  show.showVariant(classifier);
  show.showTimes(classifier);
  paintedAt = performance.now();
}

async function main() {
  await register();
  const manifest = await loadManifest();
  const {version, ...runtime} = await loadRuntime();
  classifier = new Classifier(manifest, runtime);
  show.say("Loading the network.");
  await classifier.start();
  setRange();
  show.showAbout(classifier, version);
  show.showThreads(crossOriginIsolated ? navigator.hardwareConcurrency : 1);
  show.showBudget(null);
  view.camera.hidden = !Camera.isThere;
  view.app.hidden = false;
  paint(null);
  listen();
  readAll().catch(fail);
  while (!hasFailed) {
    await step();
    await frame();
  }
}

function fail(error) {
  hasFailed = true;
  camera.stop();
  const title = error instanceof BundleError ? "This bundle cannot be used here" : "Something went wrong";
  show.showFailure(title, error);
}

main().catch(fail);
