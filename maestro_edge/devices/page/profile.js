// The runner of a browser: does in a page what runtimes/runner.py does where there is Python.
//
// Polls the host for a job, measures its .tflite files with LiteRT.js and posts one JSON answer: `about` tells
// versions and facts, `time` measures files interleaved in random order. {"error": "..."} when a job failed.

const BEAT_MS = 2000;
const PAINT_MS = 200;

const view = Object.fromEntries(
  ["status", "progress", "error", "device"].map((id) => [id, document.getElementById(id)]));

function say(text, done = 0) {
  view.status.textContent = text;
  view.progress.value = done;
}

function showError(text) {
  view.error.textContent = text;
  view.error.hidden = !text;
}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// ---- The host

let visit = 0;
let lastBeat = 0;
let lastPaint = 0;

class Refusal extends Error {
  constructor(status, reason) {
    super(reason);
    this.status = status;
  }
}

/** Ask the host until it answers: Wi-Fi comes and goes, and nothing measured may be lost. */
async function ask(path, options) {
  for (let wait = 500; ; wait = Math.min(8000, 2 * wait)) {
    let answer;
    try {
      answer = await fetch(path, options);
    } catch {
      say("The computer does not answer. Trying again: is the Wi-Fi on, is maestro-edge still running?");
      await sleep(wait);
      continue;
    }
    if (answer.ok) return answer;
    throw new Refusal(answer.status, await answer.text());
  }
}

async function read(name) {
  return new Uint8Array(await (await ask(`files/${encodeURIComponent(name)}`)).arrayBuffer());
}

const post = (path, body) => ask(path, {method: "POST", body});

/** Between two files: a sign of life, and a pause while the page is hidden, for then it runs slowly. */
async function rest() {
  while (document.hidden) {
    say("Paused: bring this page to the front.");
    await sleep(500);
  }
  if (performance.now() - lastBeat > BEAT_MS) {
    await post(`beat?visit=${visit}`);
    lastBeat = lastPaint = performance.now();
  } else if (performance.now() - lastPaint > PAINT_MS) {
    await sleep(0); // runs alone never let the browser draw the progress
    lastPaint = performance.now();
  }
}

// ---- About this device

let program = null;
let measuring = null;

function gpuName() {
  const gl = document.createElement("canvas").getContext("webgl");
  const info = gl?.getExtension("WEBGL_debug_renderer_info");
  const name = gl?.getParameter(info ? info.UNMASKED_RENDERER_WEBGL : gl.RENDERER);
  gl?.getExtension("WEBGL_lose_context")?.loseContext(); // the GPU is left alone while the CPU is measured
  return name ? String(name).slice(0, 100) : null;
}

async function about() {
  const names = {relaxedSimd: "relaxed-simd", threads: "threads"};
  const features = [];
  for (const [feature, name] of Object.entries(names)) {
    if (await program.supportsFeature(feature)) features.push(name);
  }
  const {version} = await (await ask("litert/package.json")).json();
  const hints = await navigator.userAgentData?.getHighEntropyValues(["model"]).catch(() => null);
  const page = {
    user_agent: navigator.userAgent.slice(0, 1000),
    cores: navigator.hardwareConcurrency ?? 1,
    memory_gib: navigator.deviceMemory ?? null,
    gpu: gpuName(),
    model: hints?.model || null,
    isolated: crossOriginIsolated,
    features,
  };
  view.device.textContent =
    `LiteRT.js ${version}; ${page.cores} cores; ${page.isolated ? "threads possible" : "1 thread only"}; ${page.user_agent}`;
  return {versions: {litert: `js-${version}`}, page};
}

async function keepAwake() {
  // Only https and local addresses have it; elsewhere the hints on the page have to do.
  if (!document.hidden) await navigator.wakeLock?.request("screen").catch(() => null);
}

// ---- Main

const TASKS = {about, time: (job) => measuring.time(job, {say, rest, read})};

async function work(job) {
  showError("");
  try {
    if (!Object.hasOwn(TASKS, job.task)) throw new Error(`a browser has no task ${job.task}`);
    return await TASKS[job.task](job);
  } catch (error) {
    if (error instanceof Refusal && [403, 409, 410].includes(error.status)) throw error;
    showError(String(error));
    return {error: String(error).slice(0, 2000)};
  }
}

async function deliver(name, answer) {
  const path = `answer/${encodeURIComponent(name)}?visit=${visit}`;
  try {
    await post(path, JSON.stringify(answer));
  } catch (error) {
    if (error.status === 404) return; // it has the answer already, or waits no more
    if (error.status !== 413 && error.status !== 422) throw error;
    showError(`The computer refused the result: ${error.message}`);
    await post(path, JSON.stringify({error: `the result was refused: ${error.message}`.slice(0, 2000)}));
  }
}

async function main() {
  say("Connecting.");
  visit = await (await post("claim")).text();
  program = await import("./program.js");
  measuring = await import("./measure.js");
  for (;;) {
    say("Waiting for the computer. Leave this page open.");
    const answer = await ask(`job?visit=${visit}`);
    if (answer.status === 204) continue;
    await deliver(answer.headers.get("X-Job"), await work(await answer.json()));
  }
}

document.addEventListener("visibilitychange", keepAwake);
keepAwake();
main().catch((error) => {
  const done = error instanceof Refusal && error.status === 410;
  say(done ? "Done. You can close this page." : "Stopped.", done ? 1 : 0);
  if (!done) showError(error instanceof Error ? error.message : String(error));
});
