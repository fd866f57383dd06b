"""What the gauge form of a layer takes beside the pair and the dense layer, on this machine.

    python -m benchmarks.gauge [--runtimes executorch litert] [--parts layers networks]

Writes results/gauge.json beside this file; a part that is not run stays as it was there. Single layers are
exported through the runtimes' own probes at several ranks and run interleaved in random order on one thread.
Times are of the thread's processor, in microseconds, so that other programs count little; the spread is the
interquartile range over the median. `gauge` is the form whose outputs need no order; `ordered` has an
index_select behind the concat (measured of Linears: of a convolution in channels_last, ExecuTorch does not run
it, and LiteRT's converter adds two transposes). `saved` is what gauge saves of the faster of dense and pair: the
median over the rounds, each of which meets one condition of the machine. The networks are the feed-forward half
of an encoder, cut at one rank: dense, as pairs and in gauge form. The committed results were taken beside two
trainings on the same two cores: times drift with them, the ratios of interleaved forms are good to some 5 %.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.nested_accuracy import RESULTS
from maestro_edge.devices import LocalDevice
from maestro_edge.ordered import Gauge, cut, gauge_ranks, order, ordered_layers, trace
from maestro_edge.runtimes import Runtime, load
from maestro_edge.runtimes.probe import probe_module
from maestro_edge.runtimes.runner import LOADERS, load_one
from maestro_edge.values import DENSE, LayerSpec, Rank, Timing, write_atomically

ROUNDS, RUNS = 40, 8


def linear(inputs: int, outputs: int, tokens: int) -> LayerSpec:
    return LayerSpec(kind="linear", in_channels=inputs, out_channels=outputs, input_size=(tokens,))


def conv(inputs: int, outputs: int, width: int, size: int) -> LayerSpec:
    edges = {"kernel": (width, width), "padding": (width // 2, width // 2), "input_size": (size, size)}
    return LayerSpec.model_validate(
        {"kind": "conv2d", "in_channels": inputs, "out_channels": outputs, "activation": "relu", **edges}
    )


CASES: tuple[tuple[LayerSpec, tuple[int, ...]], ...] = (
    (linear(384, 1536, 64), (96, 192, 256, 288, 320)),
    (linear(1536, 384, 64), (96, 192, 256, 288, 320)),
    (linear(192, 768, 197), (48, 96, 128, 144, 160)),
    (linear(768, 192, 197), (48, 96, 128, 144, 160)),
    (linear(384, 384, 64), (96, 160, 192, 256)),
    (linear(192, 192, 197), (48, 80, 96, 128)),
    (conv(64, 256, 1, 14), (16, 32, 48)),
    (conv(256, 256, 1, 14), (64, 112, 128, 160, 192)),
    (conv(256, 64, 1, 14), (16, 32, 48)),
    (conv(64, 64, 3, 32), (16, 32, 48)),
    (conv(128, 128, 3, 16), (32, 64, 96, 112)),
)


class Ordered(nn.Module):
    """The probe of a gauge form whose outputs are put in order."""

    def __init__(self, probe: nn.Module, outputs: int) -> None:
        super().__init__()
        first, second = next(iter(probe.children())).children()
        self.gauge = Gauge(first, second, order=torch.randperm(outputs))
        self.behind = nn.Sequential(*list(probe.children())[1:])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.behind(self.gauge(x))
        return y


def files(spec: LayerSpec, rank: int, runtime: Runtime, folder: Path) -> Iterator[tuple[str, Path]]:
    """The forms of one layer and their files."""
    forms: tuple[tuple[str, LayerSpec, Rank], ...] = (
        ("dense", spec, DENSE),
        ("pair", spec, rank),
        ("gauge", spec.gauged, rank),
    )
    for form, keyed, at in forms:
        path = folder / f"{form}{runtime.suffix}"
        runtime.write_probe(keyed, at, path)
        yield form, path
    if spec.kind == "linear":
        path = folder / f"ordered{runtime.suffix}"
        module, inputs = probe_module(spec.gauged, rank)
        runtime.export(Ordered(module, spec.out_channels).eval(), inputs, path)
        yield "ordered", path


def times_us(paths: dict[str, Path], runtime: Runtime, seed: int) -> dict[str, Timing]:
    """Of each file, interleaved; each visit warms the caches once."""
    job = {"seed": seed, "runtime": runtime.name, "threads": 1}
    programs = {form: load_one(job, str(path), LOADERS, None) for form, path in paths.items()}
    shuffle = random.Random(seed)
    samples: dict[str, list[float]] = {form: [] for form in programs}
    for program in programs.values():
        for _ in range(RUNS):
            program.run()
    for _ in range(ROUNDS):
        forms = list(programs)
        shuffle.shuffle(forms)
        for form in forms:
            run = programs[form].run
            run()
            for _ in range(RUNS):
                start = time.thread_time_ns()
                run()
                samples[form].append((time.thread_time_ns() - start) / 1e3)
    return {form: Timing.of(found) for form, found in samples.items()}


def by_round(timing: Timing) -> list[float]:
    return [median(timing.samples_ms[at : at + RUNS]) for at in range(0, timing.n, RUNS)]


def compare(spec: LayerSpec, rank: int, runtime: Runtime, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        timings = times_us(dict(files(spec, rank, runtime, Path(folder))), runtime, seed)
    return {
        "runtime": runtime.name,
        "layer": str(spec),
        "rank": rank,
        "macs": {"dense": spec.macs(), "pair": spec.macs(rank), "gauge": spec.gauged.macs(rank)},
        **compared(timings),
    }


def compared(timings: dict[str, Timing]) -> dict[str, Any]:
    medians = {form: timing.median_ms for form, timing in timings.items()}
    best = min(("dense", "pair"), key=medians.__getitem__)

    def saved(form: str) -> float:
        rounds = zip(by_round(timings[form]), by_round(timings[best]), strict=True)
        return round(1 - median(own / other for own, other in rounds), 3)

    return {
        "median_us": {form: round(us, 1) for form, us in medians.items()},
        "spread": {form: round(timing.spread, 3) for form, timing in timings.items()},
        "best": best,
        "saved": saved("gauge"),
        "saved_ordered": saved("ordered") if "ordered" in medians else None,
    }


class FeedForward(nn.Module):
    """Residual blocks of two Linears with a GELU, (N, tokens, width) → the same."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


def network(rank: int, runtime: Runtime) -> dict[str, Any]:
    """Three forms of one network of 384 and 1536 features on 64 tokens, and how far gauge is from the pairs."""
    torch.manual_seed(0)
    x = torch.randn(1, 64, 384)
    model = order(FeedForward(384, 4).eval())
    ranks = dict.fromkeys(ordered_layers(model), rank)
    traced = trace(model, (x,))
    usable = gauge_ranks(model, {name: [rank] for name in ranks})
    models = {"dense": cut(model, {}), "pair": cut(model, ranks), "gauge": cut(model, ranks, gauge=list(ranks))}
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for form, made in models.items():
            paths[form] = Path(folder) / f"{form}{runtime.suffix}"
            runtime.export(made.eval(), (x,), paths[form])
        timings = times_us(paths, runtime, seed=0)
        pair, gauge = (runtime.predict(paths[form], x.numpy()) for form in ("pair", "gauge"))
    return {
        "runtime": runtime.name,
        "rank": rank,
        "layers": len(ranks),
        "in_no_need_of_order": sum(map(len, usable.values())),
        "macs": {
            "dense": traced.macs({}),
            "pair": traced.macs(ranks),
            "gauge": traced.in_gauge(list(ranks)).macs(ranks),
        },
        "relative_error": float(abs(gauge - pair).max() / abs(pair).max()),
        **compared(timings),
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """By runtime: in how many cases the form is at least 3 % faster than both others, and by how much."""
    found = {}
    for name in sorted({row["runtime"] for row in rows}):
        own = [row for row in rows if row["runtime"] == name]
        wins = [row["saved"] for row in own if row["saved"] >= 0.03]
        ordered = [row["saved_ordered"] for row in own if row["saved_ordered"] is not None]
        found[name] = {
            "cases": len(own),
            "gauge_wins": len(wins),
            "median_saved_where_it_wins": round(median(wins), 3) if wins else None,
            "largest_saved": max(row["saved"] for row in own),
            "ordered_cases": len(ordered),
            "ordered_wins": sum(saved >= 0.03 for saved in ordered),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtimes", nargs="+", default=["executorch", "litert"])
    parser.add_argument("--parts", nargs="+", choices=["layers", "networks"], default=["layers", "networks"])
    parser.add_argument("--output", type=Path, default=RESULTS / "gauge.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    runtimes, device = [load(name) for name in options.runtimes], LocalDevice()
    rows: list[dict[str, Any]] = []
    for seed, (spec, ranks) in enumerate(CASES if "layers" in options.parts else ()):
        for rank in ranks:
            for runtime in runtimes:
                rows.append(compare(spec, rank, runtime, seed))
                print(*(rows[-1][name] for name in ("runtime", "layer", "rank", "median_us", "saved")), flush=True)
    old = json.loads(options.output.read_text()) if options.output.exists() else {}
    parts = {name: old.get(name) for name in ("summary", "rows", "networks")}
    if "layers" in options.parts:
        parts |= {"summary": summary(rows), "rows": rows}
    if "networks" in options.parts:
        parts["networks"] = [network(rank, runtime) for rank in (128, 256, 288) for runtime in runtimes]
    document = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device.facts().model_dump(mode="json"),
        "torch": torch.__version__,
        "versions": {runtime.name: runtime.version for runtime in runtimes},
        **parts,
    }
    device.close()
    write_atomically(options.output, (json.dumps(document, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
