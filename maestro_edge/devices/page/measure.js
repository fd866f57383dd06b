// Measures .tflite files with LiteRT.js: threads fixed, warm-up, then rounds over all files in random order.

import {loadRuntime, Program, runsASample, sampleMs, STEPS_A_SAMPLE, timerStep} from "./program.js";

const MOST_REPEATS = 20;

/** Nanoseconds by file; `host` can `say` what is done, `rest` between two files and `read` a file. */
export async function time(job, host) {
  if (job.runtime !== "litert") throw new Error(`a browser runs litert only, not ${job.runtime}`);
  host.say("Loading LiteRT.");
  await loadRuntime(job.threads);
  const random = generator(job.seed);
  const candidates = Object.create(null);
  const files = Object.entries(job.files);
  try {
    for (const [index, [name, path]] of files.entries()) {
      host.say(`Loading file ${index + 1} of ${files.length}.`, index / files.length);
      await host.rest();
      const mark = path.indexOf("#", path.lastIndexOf("/")); // one of several entries of a file
      const [file, entry] = mark < 0 ? [path, null] : [path.slice(0, mark), path.slice(mark + 1)];
      candidates[name] = new Candidate(new Program(await host.read(file), job.threads), entry);
    }
    return await measure(candidates, job, random, host);
  } finally {
    for (const candidate of Object.values(candidates)) await candidate.program.close();
  }
}

/** One entry of a file, with random inputs. */
class Candidate {
  constructor(program, entry) {
    Object.assign(this, {program, entry, inputs: null});
  }

  async open(random) {
    await this.program.open();
    this.inputs ??= this.program.signature(this.entry).getInputDetails().map((details) => input(details, random));
  }

  run = () => this.program.run(this.inputs, this.entry);

  /** With threads, files cannot stay open side by side: a run would wait for workers that cannot start. */
  async leave() {
    if (this.program.threads > 1) await this.program.close();
  }
}

function input({name, dtype, shape}, random) {
  const size = shape.reduce((a, b) => a * b, 1);
  if (dtype === "float32") return {shape, data: Float32Array.from({length: size}, () => 2 * random() - 1)};
  // Ids 0 and 1 are in every vocabulary.
  if (dtype === "int32") return {shape, data: Int32Array.from({length: size}, () => random() < 0.5)};
  throw new Error(`input ${name} is ${dtype}: a browser feeds float32 and int32 only`);
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

/** Run for `warmup_ms`; tells how many runs make one sample, and how many samples fill a slice. */
async function warmUp(candidate, job, step, random, host) {
  let spent = 0;
  let runs = 0;
  await candidate.open(random);
  await candidate.run();
  while (runs < 3 || spent < Math.max(job.warmup_ms, STEPS_A_SAMPLE * step)) {
    spent += 3 * (await sampleMs(candidate.run, 3));
    runs += 3;
    await host.rest();
  }
  await candidate.leave();
  const each = spent / runs;
  const batch = runsASample(step, each);
  const repeats = Math.max(1, Math.min(MOST_REPEATS, Math.round(job.slice_ms / (each * batch))));
  return {batch, repeats};
}

/** Every file once a round, in a new random order each round: drift meets all of them alike. */
async function measure(candidates, job, random, host) {
  const step = timerStep();
  const names = Object.keys(candidates);
  const plans = {};
  const samples = Object.create(null);
  for (const [index, name] of names.entries()) {
    host.say(`Warming up: file ${index + 1} of ${names.length}.`, index / names.length);
    try {
      plans[name] = await warmUp(candidates[name], job, step, random, host);
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
      const candidate = candidates[name];
      const {batch, repeats} = plans[name];
      await host.rest();
      await candidate.open(random);
      await candidate.run(); // the caches were another file's
      for (let i = 0; i < repeats; i++) {
        const ms = await sampleMs(candidate.run, batch);
        samples[name].push(Math.max(1, Math.round(ms * 1e6)));
      }
      await candidate.leave();
    }
  }
  return {samples_ns: samples};
}
