"""Runs on the device: one file that needs numpy and one runtime, and knows nothing of maestro_edge.

    python runner.py job.json result.json

Tasks: `time` measures files interleaved in random order, `ops` notes the time per operator of whole networks,
`predict` runs one file on the samples of a .npy file. The result is one JSON document, written aside and
renamed; {"error": "..."} when the job failed. Nothing is read from what the runtimes print.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from typing import Any

import numpy as np


class LiteRt:
    """One .tflite file in a TFLite interpreter with XNNPACK."""

    def __init__(self, path: str, threads: int, profile: str | None) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError:
            from tflite_runtime.interpreter import Interpreter
        if profile:
            raise RuntimeError("this runtime gives no time per operator from Python")
        self.interpreter = Interpreter(path, num_threads=threads)
        self.interpreter.allocate_tensors()
        details = self.interpreter.get_input_details()[0]
        self.input, self.shape = details["index"], tuple(details["shape"])
        self.dtype = details["dtype"]
        self.output = self.interpreter.get_output_details()[0]["index"]

    def feed(self, sample: Any) -> None:
        # Converters shorten the 64-bit ids of PyTorch to 32 bits.
        ids = np.issubdtype(sample.dtype, np.integer) and np.issubdtype(self.dtype, np.integer)
        self.sample = sample.astype(self.dtype) if ids else sample

    def run(self) -> Any:
        self.interpreter.set_tensor(self.input, self.sample)
        self.interpreter.invoke()
        return self.interpreter.get_tensor(self.output)


class ExecuTorch:
    """One .pte file: the method `forward`, with an event trace when `profile` names a file for it."""

    def __init__(self, path: str, threads: int, profile: str | None) -> None:
        import torch

        try:
            # The extension itself: portable_lib would import the whole exporter, 3.5 s more.
            from executorch.extension.pybindings import _C as lib
        except ImportError:
            from executorch.extension.pybindings import portable_lib as lib
        self.torch, self.trace = torch, profile
        if lib._threadpool_get_thread_count() != threads:
            lib._unsafe_reset_threadpool(threads)  # before loading: a loaded method keeps its number
        if profile:
            self.module = lib._load_for_executorch(path, enable_etdump=True)
            self.call = self.module.forward
            meta = self.module.method_meta("forward")
        else:
            self.program = lib._load_program(path)
            self.method = self.program.load_method("forward")
            meta = self.method.method_meta()
            self.call = self._execute
        tensor = meta.input_tensor_meta(0)
        self.shape = tuple(tensor.sizes())
        self.dtype = np.int64 if tensor.dtype() == LONG else np.float32

    def feed(self, sample: Any) -> None:
        self.sample = [self.torch.from_numpy(sample)]

    def _execute(self, inputs: Any) -> Any:
        self.method.set_inputs(inputs)
        self.method.execute()
        return self.method.get_outputs()

    def run(self) -> Any:
        return self.call(self.sample)[0].numpy()

    def finish(self) -> None:
        self.module.write_etdump_result_to_file(self.trace)
        if not (self.trace and os.path.exists(self.trace)):
            raise RuntimeError("this runtime was built without an event tracer")


LONG = 4
"""What ExecuTorch calls a tensor of 64-bit integers, such as token ids."""

LOADERS: dict[str, Any] = {"litert": LiteRt, "executorch": ExecuTorch}


def main(job_path: str, result_path: str) -> None:
    with open(job_path) as file:
        job = json.load(file)
    try:
        result = TASKS[job["task"]](job)
    except Exception as error:
        result = {"error": f"{type(error).__name__}: {error}"}
    with open(result_path + ".part", "w") as file:
        json.dump(result, file)
    os.replace(result_path + ".part", result_path)


def load_all(job: dict[str, Any], profile: bool = False) -> dict[str, Any]:
    generator = np.random.default_rng(job["seed"])
    loaded = {}
    for name, path in job["files"].items():
        trace = path + ".etdump" if profile else None
        program = LOADERS[job["runtime"]](path, job["threads"], trace)
        # Ids 0 and 1 are in every vocabulary; other inputs are real numbers.
        integers = np.issubdtype(program.dtype, np.integer)
        values = (
            generator.integers(2, size=program.shape) if integers else generator.standard_normal(program.shape)
        )
        program.feed(values.astype(program.dtype))
        loaded[name] = program
    return loaded


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Every file once a round, in a new random order each round: drift meets all of them alike."""
    programs = load_all(job)
    shuffle = random.Random(job["seed"])
    repeats = {name: warm_up(program, job["warmup_ms"], job["slice_ms"]) for name, program in programs.items()}
    samples: dict[str, list[int]] = {name: [] for name in programs}
    for _ in range(job["rounds"]):
        names = list(programs)
        shuffle.shuffle(names)
        for name in names:
            run = programs[name].run
            run()  # the caches were another file's
            for _ in range(repeats[name]):
                start = time.perf_counter_ns()
                run()
                samples[name].append(time.perf_counter_ns() - start)
    return {"samples_ns": samples}


def warm_up(program: Any, warmup_ms: float, slice_ms: float) -> int:
    """Runs for `warmup_ms`; returns how many runs fill one slice of `slice_ms`, at least 1, at most 20."""
    begin = time.perf_counter()
    runs = 0
    while runs < 3 or (time.perf_counter() - begin) * 1000 < warmup_ms:
        program.run()
        runs += 1
    each_ms = (time.perf_counter() - begin) * 1000 / runs
    return max(1, min(20, round(slice_ms / each_ms)))


def trace_ops(job: dict[str, Any]) -> dict[str, Any]:
    """Event traces beside the files; the first `cold_runs` runs of each are not representative."""
    programs = load_all(job, profile=True)
    shuffle = random.Random(job["seed"])
    for program in programs.values():
        for _ in range(job["cold_runs"]):
            program.run()
    for _ in range(job["rounds"]):
        names = list(programs)
        shuffle.shuffle(names)
        for name in names:
            for _ in range(job["runs_per_round"]):
                programs[name].run()
    for program in programs.values():
        program.finish()
    return {"traces": {name: path + ".etdump" for name, path in job["files"].items()}}


def predict(job: dict[str, Any]) -> dict[str, Any]:
    """Each sample alone, as an app runs it; outputs are stacked."""
    (path,) = job["files"].values()
    program = LOADERS[job["runtime"]](path, job["threads"], None)
    outputs = []
    for sample in np.load(job["samples"], allow_pickle=False):
        program.feed(np.ascontiguousarray(sample[None]))
        outputs.append(np.array(program.run()))
    np.save(job["outputs"], np.concatenate(outputs))
    return {"outputs": job["outputs"]}


TASKS = {"time": measure, "ops": trace_ops, "predict": predict}

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
