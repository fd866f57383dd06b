// LiteRT.js and one .tflite file run by it: what the profiler's page and apps/web have in common.

import * as litert from "./litert/index.js";

const WASM = new URL("litert/wasm/", import.meta.url).href;
export const STEPS_A_SAMPLE = 50; // so that a coarse timer is wrong by 2 % at most

let threaded = null; // which of its two builds is loaded

/** Load the build for so many threads, in place of the other one: programs of that one are gone. */
export async function loadRuntime(threads) {
  if (threads > navigator.hardwareConcurrency) {
    throw new Error(`${threads} threads on ${navigator.hardwareConcurrency} cores: use fewer threads`);
  }
  if (threaded === threads > 1) return;
  if (threads > 1 && !crossOriginIsolated) {
    throw new Error(
      `${threads} threads need https or a local address: use 1 thread, or on Android run ` +
      "`adb reverse tcp:PORT tcp:PORT` and serve on 127.0.0.1");
  }
  if (threaded !== null) litert.unloadLiteRt();
  threaded = null;
  globalThis.Module = {printErr}; // the library takes its options from there
  await litert.loadLiteRt(WASM, {threads: threads > 1});
  threaded = threads > 1;
}

/** What it has to say goes to stderr, which a browser shows as errors. */
function printErr(text) {
  if (text.startsWith("ERROR")) console.error(text);
  else console.debug(text);
}

export const supportsFeature = litert.supportsFeature;

/** One file. Open, it holds `threads - 1` workers of a pool that has as many as the device has cores. */
export class Program {
  constructor(file, threads) {
    Object.assign(this, {file, threads, model: null});
  }

  async open() {
    this.model ??= await litert.loadAndCompile(
      this.file, {accelerator: "wasm", cpuOptions: {numThreads: this.threads}});
  }

  /** The model, or the one of its signatures that has this name. */
  signature(entry = null) {
    if (entry === null) return this.model;
    if (!Object.hasOwn(this.model.signatures, entry)) throw new Error(`the file has no signature ${entry}`);
    return this.model.signatures[entry];
  }

  /** Input fed, network run, output read, which is what an app waits for: [{data, shape}] to the first output. */
  async run(inputs, entry = null) {
    const tensors = inputs.map(({data, shape}) => new litert.Tensor(data, shape));
    let outputs = [];
    try {
      outputs = await this.signature(entry).run(tensors);
      return outputs[0].toTypedArray();
    } finally {
      for (const tensor of [...tensors, ...outputs]) tensor.delete();
    }
  }

  async close() {
    this.model?.delete();
    this.model = null;
    if (this.threads > 1) await sleep(5); // its workers go back to the pool by a message to this page
  }
}

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Milliseconds between two values that the timer shows: 0.005 when isolated, else 0.1 to 1. */
export function timerStep() {
  const steps = [];
  while (steps.length < 15) {
    const start = performance.now();
    let now = start;
    while (now === start) now = performance.now();
    steps.push(now - start);
  }
  return steps.sort((a, b) => a - b)[7];
}

/** How many runs of `runMs` make one sample that this timer tells well. */
export function runsASample(step, runMs) {
  return Math.max(1, Math.ceil((STEPS_A_SAMPLE * step) / runMs));
}

/** Milliseconds of one run, the mean of `runs` timed together. */
export async function sampleMs(run, runs) {
  const start = performance.now();
  for (let i = 0; i < runs; i++) await run();
  return (performance.now() - start) / runs;
}
