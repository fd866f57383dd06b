// The variant that runs, and the change from one to another.

import {BundleError, loadFile, Unreachable} from "./bundle.js";
import {adapt, choose, expectedMs, reachable} from "./selection.js";
import {History, median} from "./statistics.js";

const RUNTIMES = ["litert"];
const SHOWN_RUNS = 200;
const LIVE_RUNS = 20; // a change is decided by the median of so many
const WARM_UP_RUNS = 3;
const ROUNDS = {rounds: 10, warmup_ms: 100, slice_ms: 50, seed: 0};

export class Classifier {
  /** `program` and `measuring` are the modules of build/ that the profiler's own page measures with. */
  constructor(manifest, {program, measuring}) {
    Object.assign(this, {manifest, runtime: program, measuring});
    this.usable = reachable(manifest.variants, RUNTIMES);
    this.failed = []; // what did not run here, and why
    this.measured = new Map(); // milliseconds of each variant's samples, by its name
    this.history = new History(SHOWN_RUNS);
    this.threads = 1;
    this.budgetMs = null;
    this.current = null;
    this.before = null; // what ran before it, and its median
    this.program = null;
    this.stepMs = program.timerStep();
  }

  /** Median of the last runs of the current variant; NaN before the first. */
  get liveMs() {
    return median(this.history.current().slice(-LIVE_RUNS));
  }

  /** What a variant would take here; what it took elsewhere as long as nothing ran here. */
  expectedMs(variant) {
    const known = this.history.since > 0 ? {variant: this.current, liveMs: this.liveMs} : this.before;
    return known ? expectedMs(variant, known.variant, known.liveMs) : variant.measured_ms.p50;
  }

  async start() {
    if (this.usable.length === 0) {
      const have = this.manifest.variants.map(({name, runtime}) => `${name} (${runtime})`).join(", ") || "nothing";
      throw new BundleError(
        `No variant of this bundle was measured with LiteRT: it has ${have}.`,
        "Export a variant with --runtime litert, then make the bundle again.");
    }
    await this.open(this.first());
  }

  /** The variant for the budget by the manifest's times; the fastest where none keeps it. */
  first() {
    // A page knows nothing of its processor, and of memory no more than 8 GiB.
    const device = {soc: null, memory_gib: navigator.deviceMemory ?? null};
    const {usable: variants, budgetMs, manifest} = this;
    const chosen = choose({variants, budgetMs, runtimes: RUNTIMES, choices: manifest.choices, device});
    const fastest = (one, other) => (other.measured_ms.p50 < one.measured_ms.p50 ? other : one);
    return chosen ?? variants.reduce(fastest);
  }

  /** Hold to this budget from now on; null is none. */
  async setBudget(budgetMs) {
    this.budgetMs = budgetMs;
    await this.open(budgetMs !== null && this.history.since >= LIVE_RUNS ? this.next() : this.first());
  }

  async setThreads(threads) {
    await this.program.close();
    this.program = null;
    this.threads = threads;
    await this.open(this.current);
    this.before = null;
    this.history.restart();
  }

  /** The variant to go on with. A page cannot read how hot its device is: that is seen in the times alone. */
  next() {
    const {usable: variants, current, liveMs, budgetMs} = this;
    return adapt({variants, current, liveMs, budgetMs, hot: false, runtimes: RUNTIMES});
  }

  /** Change where the last runs say so. */
  async adapt() {
    if (this.history.since % LIVE_RUNS !== 0) return;
    this.learn();
    await this.open(this.next());
  }

  /**
   * Correct the current variant's p50 by what the change to it has shown. The ratio of two variants is another one
   * here than where they were measured, and a page that did not learn it would change to and fro for ever.
   */
  learn() {
    if (this.before === null) return;
    const p50 = (this.before.variant.measured_ms.p50 * this.liveMs) / this.before.liveMs;
    const learned = {...this.current, measured_ms: {...this.current.measured_ms, p50}};
    this.usable = this.usable.map((variant) => (variant === this.current ? learned : variant));
    this.current = learned;
    this.before = null;
  }

  /** Make this variant the current one; one that does not run here is left out from then on, and another taken. */
  async open(variant) {
    for (let wanted = variant; ; wanted = this.first()) {
      try {
        if (wanted !== this.current || this.program === null) await this.load(wanted);
        return;
      } catch (error) {
        const isDamaged = error instanceof BundleError && !(error instanceof Unreachable && this.current);
        if (isDamaged) throw error;
        this.failed.push(`${wanted.name} does not run here (${error.message ?? error})`);
        this.usable = this.usable.filter((other) => other !== wanted);
      }
      if (this.usable.length === 0) {
        throw new BundleError(
          `No variant of this bundle runs in this browser: ${this.failed.join("; ")}.`,
          "Export a variant in fp32 or int8-dynamic with --runtime litert, or use another browser.");
      }
    }
  }

  async load(variant) {
    if (this.program?.sha256 !== variant.sha256) {
      const file = await loadFile(variant);
      await this.program?.close();
      this.program = null;
      await this.runtime.loadRuntime(this.threads);
      const program = new this.runtime.Program(file, this.threads);
      await program.open();
      this.program = Object.assign(program, {sha256: variant.sha256});
    }
    const {shape} = this.manifest.input;
    const run = () => this.run(variant, new Float32Array(shape.reduce((a, b) => a * b, 1)));
    await this.runtime.sampleMs(run, WARM_UP_RUNS);
    this.runs = this.runtime.runsASample(this.stepMs, await this.runtime.sampleMs(run, WARM_UP_RUNS));
    if (variant === this.current) return;
    this.before = this.history.since >= LIVE_RUNS ? {variant: this.current, liveMs: this.liveMs} : null;
    this.current = variant;
    this.history.restart();
  }

  async run({name, entry = null}, data) {
    const {input, labels} = this.manifest;
    const scores = await this.program.run([{data, shape: input.shape}], entry);
    if (scores.length !== labels.length || !scores.every(Number.isFinite)) {
      const gave = `${scores.length} scores${scores.length === labels.length ? ", not all of them finite," : ""}`;
      throw new BundleError(`${name} gave ${gave} for ${labels.length} labels.`, "Make the bundle again.");
    }
    return scores;
  }

  /** The scores of what is fed; its time goes into the history. */
  async classify(data) {
    let scores = null;
    const run = async () => { scores = await this.run(this.current, data); };
    const ms = await this.runtime.sampleMs(run, this.runs);
    this.history.add(ms, this.current.name);
    return scores;
  }

  /** Time all usable variants in turn, as the profiler does, on random inputs. */
  async measureAll(host) {
    await this.program.close();
    this.program = null;
    const files = this.usable.map(({name, entry}) => [name, entry ? `${name}#${entry}` : name]);
    const job = {...ROUNDS, runtime: "litert", threads: this.threads, files: Object.fromEntries(files)};
    const read = (name) => loadFile(this.usable.find((variant) => variant.name === name));
    try {
      const {samples_ns: samples} = await this.measuring.time(job, {...host, read});
      for (const [name, ns] of Object.entries(samples)) this.measured.set(name, ns.map((each) => each / 1e6));
    } finally {
      await this.open(this.current);
    }
  }
}
