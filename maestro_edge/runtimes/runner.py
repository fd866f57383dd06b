"""Runs on the device: one file that needs numpy and one runtime, and knows nothing of maestro_edge.

    python runner.py job.json result.json

Tasks: `about` tells which runtimes are here, `time` measures files interleaved in random order, `ops` notes the
time per operator of whole networks, `solo` runs one file alone for cold start, peak memory and energy, `predict`
runs one file on the samples of a .npy file. The result is one JSON document, written aside and renamed;
{"error": "..."} when the job failed, and "missing" when its runtime is not here. Nothing is read from what the
runtimes print. One of several entries of a file is "#entry" behind its path, in all tasks but `ops`.
"""

from __future__ import annotations

import ctypes
import glob
import json
import os
import random
import sys
import time
from importlib import metadata
from typing import Any

import numpy as np


class LiteRt:
    """One .tflite file, or one of its signatures, in a TFLite interpreter with XNNPACK."""

    def __init__(self, path: str, threads: int, profile: str | None) -> None:
        path, entry = split_entry(path)
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError:
            from tflite_runtime.interpreter import Interpreter
        self.interpreter = Interpreter(path, num_threads=threads)
        self.interpreter.allocate_tensors()  # first: tflite-runtime runs a signature without XNNPACK otherwise
        self.signature = self.interpreter.get_signature_runner(entry) if entry else None
        if self.signature:
            ((self.input, details),) = self.signature.get_input_details().items()
        else:
            details = self.interpreter.get_input_details()[0]
            self.input, self.output = details["index"], self.interpreter.get_output_details()[0]["index"]
        self.shape, self.dtype = tuple(details["shape"]), details["dtype"]

    def feed(self, sample: Any) -> None:
        # Converters shorten the 64-bit ids of PyTorch to 32 bits.
        ids = np.issubdtype(sample.dtype, np.integer) and np.issubdtype(self.dtype, np.integer)
        self.sample = sample.astype(self.dtype) if ids else sample

    def run(self) -> Any:
        if self.signature:
            return next(iter(self.signature(**{self.input: self.sample}).values()))
        self.interpreter.set_tensor(self.input, self.sample)
        self.interpreter.invoke()
        return self.interpreter.get_tensor(self.output)


class ExecuTorch:
    """A method of a .pte file, `forward` by default, with an event trace when `profile` names a file for it."""

    def __init__(self, path: str, threads: int, profile: str | None) -> None:
        import torch

        path, entry = split_entry(path)

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
            self.method = self.program.load_method(entry or "forward")
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


class LiteRtProfiled:
    """One .tflite file through LiteRT's C interface, whose profiler times every kernel of XNNPACK."""

    def __init__(self, path: str, threads: int, profile: str | None) -> None:
        import ai_edge_litert

        self.api = ctypes.CDLL(os.path.join(os.path.dirname(ai_edge_litert.__file__), "libLiteRt.so"))
        self.start = getattr(self.api, "LiteRtStartProfiler", None) or self.api.LiteRtStartProfiling
        self.stop = getattr(self.api, "LiteRtStopProfiler", None) or self.api.LiteRtStopProfiling
        self.environment, self.model = ctypes.c_void_p(), ctypes.c_void_p()
        self.check("CreateEnvironment", 0, None, ctypes.byref(self.environment))
        self.check("CreateModelFromFile", self.environment, path.encode(), ctypes.byref(self.model))
        options = ctypes.c_void_p()
        self.check("CreateOptions", ctypes.byref(options))
        self.check("SetOptionsHardwareAccelerators", options, 1)  # the CPU
        self.option(options, "xnnpack", f"num_threads = {threads}\n")
        self.option(options, "runtime_options_string", "enable_profiling = true\n")
        self.compiled, self.profiler = ctypes.c_void_p(), ctypes.c_void_p()
        self.check("CreateCompiledModel", self.environment, self.model, options, ctypes.byref(self.compiled))
        self.check("CompiledModelGetProfiler", self.compiled, ctypes.byref(self.profiler))
        self.inputs, self.shape, self.dtype = self.buffers("Input")
        self.outputs, _, _ = self.buffers("Output")
        self.names: list[str] = []
        self.runs_us: list[list[int]] = []

    def check(self, function: str, *arguments: Any) -> None:
        status = getattr(self.api, f"LiteRt{function}")(*arguments)
        if status:
            raise RuntimeError(f"LiteRt{function} failed with status {status}")

    def option(self, options: Any, name: str, text: str) -> None:
        """Options are TOML that LiteRT owns and frees."""
        self.payloads = [*getattr(self, "payloads", []), ctypes.create_string_buffer(text.encode())]
        made = ctypes.c_void_p()
        payload = ctypes.cast(self.payloads[-1], ctypes.c_void_p)
        self.check("CreateOpaqueOptions", name.encode(), payload, KEEP, ctypes.byref(made))
        self.check("AddOpaqueOptions", options, made)

    def buffers(self, kind: str) -> tuple[Any, tuple[int, ...], Any]:
        """The tensor buffers of the first signature, and shape and type of the first of them."""
        signature, count = ctypes.c_void_p(), ctypes.c_size_t()
        self.check("GetModelSignature", self.model, ctypes.c_size_t(0), ctypes.byref(signature))
        self.check(f"GetNumSignature{kind}s", signature, ctypes.byref(count))
        made = (ctypes.c_void_p * count.value)()
        shapes = []
        for index in range(count.value):
            tensor, needs, buffer = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
            layout = (ctypes.c_int32 * 64)()  # element type, rank in the low 7 bits, dimensions
            at = ctypes.c_size_t(index)
            self.check(f"GetSignature{kind}TensorByIndex", signature, at, ctypes.byref(tensor))
            self.check("GetRankedTensorType", tensor, layout)
            first = ctypes.c_size_t(0)
            self.check(f"GetCompiledModel{kind}BufferRequirements", self.compiled, first, at, ctypes.byref(needs))
            self.check(
                "CreateManagedTensorBufferFromRequirements", self.environment, layout, needs, ctypes.byref(buffer)
            )
            made[index] = buffer
            shapes.append((tuple(layout[2 : 2 + (layout[1] & 0x7F)]), np.int32 if layout[0] == 2 else np.float32))
        return made, *shapes[0]

    def feed(self, sample: Any) -> None:
        sample, target = np.ascontiguousarray(sample), ctypes.c_void_p()
        buffer = ctypes.c_void_p(self.inputs[0])
        self.check("LockTensorBuffer", buffer, ctypes.byref(target), 1)  # for writing
        ctypes.memmove(target, sample.ctypes.data, sample.nbytes)
        self.check("UnlockTensorBuffer", buffer)

    def run(self) -> None:
        self.check("ResetProfiler", self.profiler)
        self.start(self.profiler)
        ins, outs = (ctypes.c_size_t(len(buffers)) for buffers in (self.inputs, self.outputs))
        self.check("RunCompiledModel", self.compiled, ctypes.c_size_t(0), ins, self.inputs, outs, self.outputs)
        self.stop(self.profiler)
        count = ctypes.c_int()
        self.check("GetNumProfilerEvents", self.profiler, ctypes.byref(count))
        events = (Event * max(1, count.value))()
        self.check("GetProfilerEvents", self.profiler, count, events)
        kernels = [event for event in events[: count.value] if event.kind == Event.KERNEL]
        self.names = [event.tag.decode(errors="replace") for event in kernels]
        self.runs_us.append([event.us for event in kernels])

    def finish(self) -> list[tuple[str, list[int]]]:
        """Each kernel's name and its microseconds run by run."""
        return list(zip(self.names, map(list, zip(*self.runs_us, strict=True)), strict=True))


KEEP = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda payload: None)
"""What LiteRT calls to free an option's text: Python does that itself."""


class Event(ctypes.Structure):
    """One event of LiteRT's profiler."""

    KERNEL = 8
    """An operator that a delegate ran."""

    _fields_ = (
        ("tag", ctypes.c_char_p),
        ("kind", ctypes.c_int),
        ("start_us", ctypes.c_uint64),
        ("us", ctypes.c_uint64),
        ("memory", ctypes.c_size_t * 6),
        ("metadata", ctypes.c_uint64 * 2),
        ("source", ctypes.c_int),
    )


class Onnx:
    """One .onnx file in ONNX Runtime on the CPU, which notes every kernel's time when `profile` names a file."""

    def __init__(self, path: str, threads: int, profile: str | None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3  # errors, which are raised anyway
        # Threads that spin on after a run would take the cores of the file that is timed next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, profile
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        tensor = self.session.get_inputs()[0]
        self.input, self.shape = tensor.name, tuple(tensor.shape)
        self.dtype = np.int64 if tensor.type == "tensor(int64)" else np.float32

    def feed(self, sample: Any) -> None:
        self.sample = {self.input: sample}

    def run(self) -> Any:
        return self.session.run(None, self.sample)[0]

    def finish(self) -> list[tuple[str, list[int]]]:
        """Each kernel's operator and name, and its microseconds run by run."""
        path = self.session.end_profiling()
        with open(path) as file:
            events = json.load(file)
        os.remove(path)
        kernels: dict[str, list[int]] = {}
        for event in events:
            if event["name"].endswith("_kernel_time"):
                kernels.setdefault(f"{event['args']['op_name']} {event['name']}", []).append(event["dur"])
        return list(kernels.items())


LONG = 4
"""What ExecuTorch calls a tensor of 64-bit integers, such as token ids."""

LOADERS: dict[str, Any] = {"litert": LiteRt, "executorch": ExecuTorch, "onnx": Onnx}
PROFILED: dict[str, Any] = {"litert": LiteRtProfiled, "executorch": ExecuTorch, "onnx": Onnx}


def main(job_path: str, result_path: str) -> None:
    with open(job_path) as file:
        job = json.load(file)
    try:
        if job.get("cores"):
            os.sched_setaffinity(0, job["cores"])
        load = Load()
        result = TASKS[job["task"]](job)
        result["others_cores"] = load.others_cores()
    except Exception as error:
        result = {"error": f"{type(error).__name__}: {error}"}
        if job.get("runtime") not in about(job)["versions"]:
            result["missing"] = job.get("runtime")
    with open(result_path + ".part", "w") as file:
        json.dump(result, file)
    os.replace(result_path + ".part", result_path)


class Load:
    """How much processor time other programs took, and what a virtual machine's host kept for itself."""

    def __init__(self) -> None:
        self.begin = self.read()

    def read(self) -> tuple[float, float, float] | None:
        try:
            with open("/proc/stat") as file:
                user, nice, system, _, _, irq, softirq, steal = map(int, file.readline().split()[1:9])
        except (OSError, ValueError):
            return None  # not Linux, or a phone that hides it
        seconds = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        own = os.times()
        return seconds, own.user + own.system, time.monotonic()

    def others_cores(self) -> float | None:
        """Cores that were busy with something else, on average; None where it cannot be read."""
        end = self.read()
        if self.begin is None or end is None:
            return None
        busy, own, elapsed = (after - before for before, after in zip(self.begin, end, strict=True))
        return max(0.0, busy - own) / max(elapsed, 1e-3)


def split_entry(path: str) -> tuple[str, str]:
    """A file's path and the entry behind it; the names of files here are the host's, without a "#"."""
    folder, name = os.path.split(path)
    file, _, entry = name.partition("#")
    return os.path.join(folder, file), entry


def load_one(job: dict[str, Any], path: str, loaders: dict[str, Any], trace: str | None) -> Any:
    """The program of a file, fed; ids 0 and 1 are in every vocabulary, other inputs are real numbers."""
    generator = np.random.default_rng(job["seed"])
    program = loaders[job["runtime"]](path, job["threads"], trace)
    integers = np.issubdtype(program.dtype, np.integer)
    values = generator.integers(2, size=program.shape) if integers else generator.standard_normal(program.shape)
    program.feed(values.astype(program.dtype))
    return program


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Every file once a round, in a new random order each round: drift meets all of them alike."""
    programs = {name: load_one(job, path, LOADERS, None) for name, path in job["files"].items()}
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
    """Runs for `warmup_ms` and until two runs agree within 5 %; returns how many fill `slice_ms`, 2 to 20.

    After ten times `warmup_ms` it goes on as it is: rows that are not steady show in their spread.
    """
    begin = time.perf_counter()
    times: list[float] = []
    while True:
        start = time.perf_counter()
        program.run()
        end = time.perf_counter()
        times.append(end - start)
        steady = len(times) >= 3 and abs(times[-1] - times[-2]) <= 0.05 * times[-1]
        if (end - begin) * 1000 >= warmup_ms * (1 if steady else 10) and len(times) >= 3:
            break
    each_ms = 1000 * sorted(times)[len(times) // 2]
    return max(2, min(20, round(slice_ms / max(each_ms, 1e-6))))


def trace_ops(job: dict[str, Any]) -> dict[str, Any]:
    """Times of every operator: event traces beside the files, or the microseconds of each run.

    The first `cold_runs` runs of each file are not representative.
    """
    traces = {name: path + ".etdump" for name, path in job["files"].items()}
    programs = {name: load_one(job, path, PROFILED, traces[name]) for name, path in job["files"].items()}
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
    found = {name: program.finish() for name, program in programs.items()}
    return {"traces": traces} if job["runtime"] == "executorch" else {"ops": found}


def solo(job: dict[str, Any]) -> dict[str, Any]:
    """One file in a process of its own: cold start, peak memory, and the energy of a run where it can be read."""
    (path,) = job["files"].values()
    start = time.perf_counter()
    program = load_one(job, path, LOADERS, None)
    loaded = time.perf_counter()
    program.run()
    first = time.perf_counter()
    runs, meter = 0, Meter()
    while runs < 3 or time.perf_counter() - first < job["seconds"]:
        program.run()
        runs += 1
        meter.note()
    return {
        "load_ms": 1000 * (loaded - start),
        "first_ms": 1000 * (first - loaded),
        "peak_kib": peak_kib(),
        "energy_mj": meter.millijoules(runs),
    }


def peak_kib() -> int | None:
    """The resident set's high-water mark; getrusage's is inherited from whoever started this process."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return None


class Meter:
    """Energy of the whole device: RAPL counters on a PC, INA3221 rails on a Jetson, the battery of a phone."""

    RAPL = "/sys/class/powercap/intel-rapl:?/energy_uj"
    RAILS = "/sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/curr1_input"
    BATTERY = "/sys/class/power_supply/[bB]att*/current_now"

    def __init__(self) -> None:
        self.begin = time.perf_counter()
        self.joules = [number(path) for path in sorted(glob.glob(self.RAPL))]
        self.watts: list[float] = []
        self.last = 0.0

    def note(self) -> None:
        """Read what tells power rather than energy, at most every 50 ms."""
        now = time.perf_counter()
        if self.joules or now - self.last < 0.05:
            return
        self.last = now
        for pattern, volts, scale in ((self.RAILS, "in1_input", 1e-6), (self.BATTERY, "voltage_now", 1e-12)):
            for path in glob.glob(pattern):
                current, voltage = number(path), number(os.path.join(os.path.dirname(path), volts))
                if current is not None and voltage is not None:
                    self.watts.append(abs(current) * voltage * scale)
                    return

    def millijoules(self, runs: int) -> float | None:
        """Of one run on average; None where nothing can be read, or a counter began anew."""
        if self.joules:
            after = [number(path) for path in sorted(glob.glob(self.RAPL))]
            used = [b - a for a, b in zip(self.joules, after, strict=True) if a is not None and b is not None]
            return sum(used) / 1000 / runs if used and min(used) >= 0 and sum(used) > 0 else None
        if not self.watts:
            return None
        return 1000 * sum(self.watts) / len(self.watts) * (time.perf_counter() - self.begin) / runs


def number(path: str) -> float | None:
    try:
        with open(path) as file:
            return float(file.read())
    except (OSError, ValueError):
        return None


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


PACKAGES = {
    "executorch": ("executorch",),
    "litert": ("ai-edge-litert", "tflite-runtime"),
    "onnx": ("onnxruntime", "onnxruntime-gpu"),  # the latter on a Jetson
}


def about(job: dict[str, Any]) -> dict[str, Any]:
    """Versions of the runtimes that this interpreter could import; nothing heavy is imported."""
    versions = {}
    for runtime, packages in PACKAGES.items():
        for package in reversed(packages):
            try:
                versions[runtime] = metadata.version(package)
            except metadata.PackageNotFoundError:
                continue
    return {"versions": versions, "python": sys.version.split()[0]}


TASKS = {"about": about, "time": measure, "ops": trace_ops, "solo": solo, "predict": predict}

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
