// Measures .tflite files with LiteRT.js: threads fixed, warm-up, then rounds over all files in random order.

const MOST_REPEATS = 20;
const STEPS_A_SAMPLE = 50; // so that a coarse timer is wrong by 2 % at most

/** Nanoseconds by file; `host` can `say` what is done, `rest` between two files and `read` a file. */
export async function time(job, library, host) {
  if (job.runtime !== "litert") throw new Error(`a browser runs litert only, not ${job.runtime}`);
  litert = library;
  host.say("Loading LiteRT.");
  await loadRuntime(job.threads);
  const random = generator(job.seed);
  const programs = Object.create(null);
  const files = Object.entries(job.files);
  try {
    for (const [index, [name, path]] of files.entries()) {
      host.say(`Loading file ${index + 1} of ${files.length}.`, index / files.length);
      await host.rest();
      const mark = path.indexOf("#", path.lastIndexOf("/"));
      if (mark >= 0) throw new Error(`a browser runs files of one entry, not ${path.slice(mark + 1)} of several`);
      programs[name] = new Program(await host.read(path), job.threads, random);
    }
    return await measure(programs, job, random, host);
  } finally {
    for (const program of Object.values(programs)) await program.close();
  }
}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

let litert;
let threaded = null; // which of its two builds is loaded

async function loadRuntime(threads) {
  if (threads > navigator.hardwareConcurrency) {
    throw new Error(`${threads} threads on ${navigator.hardwareConcurrency} cores: measure with fewer threads`);
  }
  if (threaded === threads > 1) return;
  if (threads > 1 && !crossOriginIsolated) {
    throw new Error(
      `${threads} threads need https or a local address: measure with 1 thread, or on Android run ` +
      "`adb reverse tcp:PORT tcp:PORT` and serve on 127.0.0.1");
  }
  if (threaded !== null) litert.unloadLiteRt();
  threaded = null;
  await litert.loadLiteRt("litert/wasm/", {threads: threads > 1});
  threaded = threads > 1;
}

/** One file. Open, it holds `threads - 1` workers of a pool that has as many as the device has cores. */
class Program {
  constructor(file, threads, random) {
    Object.assign(this, {file, threads, random, model: null, inputs: null});
  }

  async open() {
    if (this.model) return;
    this.model = await litert.loadAndCompile(
      this.file, {accelerator: "wasm", cpuOptions: {numThreads: this.threads}});
    this.inputs ??= this.model.getInputDetails().map((details) => this.input(details));
  }

  input({name, dtype, shape}) {
    const size = shape.reduce((a, b) => a * b, 1);
    if (dtype === "float32") return {shape, data: Float32Array.from({length: size}, () => 2 * this.random() - 1)};
    // Ids 0 and 1 are in every vocabulary.
    if (dtype === "int32") return {shape, data: Int32Array.from({length: size}, () => this.random() < 0.5)};
    throw new Error(`input ${name} is ${dtype}: a browser feeds float32 and int32 only`);
  }

  /** Input fed, network run, output read: what an app waits for. */
  async run() {
    const inputs = this.inputs.map(({data, shape}) => new litert.Tensor(data, shape));
    const outputs = await this.model.run(inputs);
    outputs[0].toTypedArray();
    for (const tensor of [...inputs, ...outputs]) tensor.delete();
  }

  /** With threads, files cannot stay open side by side: a run would wait for workers that cannot start. */
  async leave() {
    if (this.threads > 1) await this.close();
  }

  async close() {
    this.model?.delete();
    this.model = null;
    if (this.threads > 1) await sleep(5); // its workers go back to the pool by a message to this page
  }
}

/** mulberry32: the order of a seed is the same in every browser. */
function generator(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

function shuffle(names, random) {
  for (let i = names.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [names[i], names[j]] = [names[j], names[i]];
  }
}

/** Milliseconds between two values that the timer shows: 0.005 when isolated, else 0.1 to 1. */
function timerStep() {
  const steps = [];
  while (steps.length < 15) {
    const start = performance.now();
    let now = start;
    while (now === start) now = performance.now();
    steps.push(now - start);
  }
  return steps.sort((a, b) => a - b)[7];
}

/** Run for `warmup_ms`; tells how many runs make one sample, and how many samples fill a slice. */
async function warmUp(program, job, step, host) {
  let spent = 0;
  let runs = 0;
  await program.open();
  await program.run();
  while (runs < 3 || spent < Math.max(job.warmup_ms, STEPS_A_SAMPLE * step)) {
    const start = performance.now();
    for (let i = 0; i < 3; i++, runs++) await program.run();
    spent += performance.now() - start;
    await host.rest();
  }
  await program.leave();
  const each = spent / runs;
  const batch = Math.max(1, Math.ceil((STEPS_A_SAMPLE * step) / each));
  const repeats = Math.max(1, Math.min(MOST_REPEATS, Math.round(job.slice_ms / (each * batch))));
  return {batch, repeats};
}

/** Every file once a round, in a new random order each round: drift meets all of them alike. */
async function measure(programs, job, random, host) {
  const step = timerStep();
  const names = Object.keys(programs);
  const plans = {};
  const samples = Object.create(null);
  for (const [index, name] of names.entries()) {
    host.say(`Warming up: file ${index + 1} of ${names.length}.`, index / names.length);
    try {
      plans[name] = await warmUp(programs[name], job, step, host);
    } catch (error) {
      if (error.status) throw error; // the host's, not the file's
      throw new Error(`${name}: ${error.message ?? error}`);
    }
    samples[name] = [];
  }
  for (let round = 0; round < job.rounds; round++) {
    host.say(`Measuring ${names.length} files: round ${round + 1} of ${job.rounds}.`, round / job.rounds);
    shuffle(names, random);
    for (const name of names) {
      const program = programs[name];
      const {batch, repeats} = plans[name];
      await host.rest();
      await program.open();
      await program.run(); // the caches were another file's
      for (let i = 0; i < repeats; i++) {
        const start = performance.now();
        for (let j = 0; j < batch; j++) await program.run();
        samples[name].push(Math.max(1, Math.round(((performance.now() - start) * 1e6) / batch)));
      }
      await program.leave();
    }
  }
  return {samples_ns: samples};
}
