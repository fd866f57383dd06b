"""How well a table predicts networks that it has not seen, how long it takes, and how it repeats.

    python -m benchmarks.profiling [--cases resnet18-32 vit encoder resnet18-224] [--runtimes executorch litert]
        [--precisions fp32 int8-static] [--count 20]

Writes results/profiling.json and .png beside this file after every case; what is there already is kept, unless
other programs, or the host of a virtual machine, took time meanwhile, or the dense network became slower or
faster: such a case is repeated. One thread, this machine. For each network, runtime and precision: a table is
made (its seconds include all exports) and made again ("repeat"), `count` random rank assignments that no
calibration has seen are exported, and measured right behind another table that predicts them: their exports take
minutes, in which the machine may have become another. Where the dense network's own time moved by more than 4 %
between the two that are compared, both are measured anew, up to three times ("attempts"). Times do not depend on
weights, so the networks are untrained.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.nested_accuracy import RESULTS
from maestro_edge.devices import LocalDevice
from maestro_edge.ordered import order, trace
from maestro_edge.profiling import measure_networks, profile
from maestro_edge.recipes.models import Block
from maestro_edge.recipes.vision import ResNet, resnet18
from maestro_edge.runtimes import MeasuringProtocol, load
from maestro_edge.values import LatencyTable, NetworkTiming, Precision, write_atomically


class Layer(nn.Module):
    """Attention and MLP, before each a LayerNorm: (N, L, D) → (N, L, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.rise, self.fall = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        risen: Tensor = self.fall(torch.nn.functional.gelu(self.rise(self.norm2(x))))
        return x + risen


class Encoder(nn.Module):
    """Layers of width 256 and a classifier of the mean token: (N, L, 256) → (N, 10)."""

    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(Layer(256, 4) for _ in range(layers)))
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(x).mean(1))
        return logits


class Vit(nn.Module):
    """The encoder on 4x4 patches of an image: (N, 3, 32, 32) → (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 256, 4, stride=4)
        self.encoder = Encoder()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.encoder(self.patches(x).flatten(2).transpose(1, 2))
        return logits


def resnet18_large() -> nn.Module:
    """ResNet-18 of ImageNet: 11.69 M parameters, 1.8 GMACs at 224 x 224."""
    widths, depths = (64, 128, 256, 512), (2, 2, 2, 2)
    return ResNet(Block, channels=3, classes=1000, stem=64, widths=widths, depths=depths, large=True)


ATTEMPTS = 3
DRIFT = 0.04
"""Of the dense network, between two measurements that are compared."""
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18-32": (resnet18, (1, 3, 32, 32)),
    "vit": (Vit, (1, 3, 32, 32)),
    "encoder": (Encoder, (1, 64, 256)),
    "resnet18-224": (resnet18_large, (1, 3, 224, 224)),
}


def run(case: str, runtime_name: str, precision: Precision, count: int, folder: Path) -> dict[str, Any]:
    """Tables of one network, and the errors of the last on networks that it has not seen."""
    make, shape = CASES[case]
    torch.manual_seed(0)
    model, inputs = order(make().eval()), (torch.randn(shape),)
    runtime, device, protocol = load(runtime_name), LocalDevice(), MeasuringProtocol()

    def table() -> LatencyTable:
        return profile(
            model, inputs, runtime, device, folder=folder, name=case, protocol=protocol, precision=precision
        )

    began = time.monotonic()
    first = table()
    seconds = time.monotonic() - began
    print(f"{case} {first.title} {precision}: table in {seconds:.0f} s", flush=True)
    network = trace(model, inputs, name=case)

    def dense_ms(known: LatencyTable) -> float:
        return known.calibration(network).networks[0].timing.median_ms

    again, repeats, speed = first, 0, 0.0
    while repeats < ATTEMPTS and abs(speed - 1) > DRIFT:
        before, again = again, table()
        repeats, speed = repeats + 1, dense_ms(again) / dense_ms(before)
    print(f"{runtime_name}: exporting {count} other networks", flush=True)

    def others(known: LatencyTable, protocol: MeasuringProtocol) -> tuple[NetworkTiming, ...]:
        return measure_networks(
            model, inputs, known, runtime, device, folder=folder, count=count, name=case, protocol=protocol
        )

    others(first, protocol.flow_only())
    print("another table, and the others", flush=True)
    attempts, drift = 0, 0.0
    while attempts < ATTEMPTS and abs(drift - 1) > DRIFT:
        last = table()
        dense, *networks = others(last, protocol)
        attempts, drift = attempts + 1, dense.timing.median_ms / dense_ms(last)
    device.close()
    fit = last.calibration(network)
    predicted = [fit.whole_ms(item.layers_ms) for item in networks]
    return {
        "case": case,
        "runtime": first.title,
        "precision": precision,
        "seconds": round(seconds, 1),
        "rows": len(first.rows),
        "methods": sorted({row.method for row in first.rows}),
        "rank_step": first.rank_step,
        "leave_one_out_mape": round(fit.loo_mape, 4),
        "disturbed": [each.disturbed for each in (before, again, last)]
        + [any(item.timing.disturbed for item in networks)],
        "drift": round(drift - 1, 4),
        "errors": errors(predicted, networks, 1.0),
        "errors_at_equal_speed": errors(predicted, networks, drift),
        "drift_of_repeat": round(speed - 1, 4),
        "repeat": repeat(before, again, 1.0),
        "repeat_at_equal_speed": repeat(before, again, speed),
        "attempts": [repeats, attempts],
        "networks": [
            {"ms": round(item.timing.median_ms, 4), "predicted": round(ms, 4)}
            for item, ms in zip(networks, predicted, strict=True)
        ],
    }


def errors(predicted: list[float], networks: list[NetworkTiming], speed: float) -> dict[str, float]:
    """Mean and worst absolute percentage error, and the share within 10 %."""
    found = [abs(ms * speed / item.timing.median_ms - 1) for ms, item in zip(predicted, networks, strict=True)]
    return {
        "mape": round(statistics.mean(found), 4),
        "worst": round(max(found), 4),
        "within_10": round(sum(error <= 0.1 for error in found) / len(found), 3),
    }


def repeat(first: LatencyTable, again: LatencyTable, speed: float) -> dict[str, float]:
    """Absolute difference of the rows of both tables: median over rows, and weighted by their milliseconds."""
    pairs = [(row.ms * speed, again.row(row.spec, row.rank).ms) for row in first.rows if row.ms > 0]
    differences = [abs(b / a - 1) for a, b in pairs]
    weighted = sum(abs(b - a) for a, b in pairs) / sum(a for a, _ in pairs)
    return {"median": round(statistics.median(differences), 4), "weighted": round(weighted, 4)}


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Predicted against measured, all networks that no calibration has seen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    figure, axes = pyplot.subplots(figsize=(6.4, 5.6))
    for row in sorted(rows, key=lambda row: (list(CASES).index(row["case"]), row["runtime"], row["precision"])):
        measured, runtime = [item["ms"] for item in row["networks"]], row["runtime"].partition("/")[2]
        colour = f"C{list(CASES).index(row['case'])}"
        axes.plot(
            measured,
            [item["predicted"] for item in row["networks"]],
            ("o" if runtime.startswith("executorch") else "^") if is_calm(row) else "x",
            color=colour,
            markerfacecolor=colour if row["precision"] == "fp32" else "none",
            markersize=5,
            label=f"{row['case']} {runtime} {row['precision']}{'' if is_calm(row) else ', disturbed'}",
        )
    low, high = axes.get_xlim()
    axes.plot([low, high], [low, high], color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("measured ms")
    axes.set_ylabel("predicted ms")
    axes.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def is_calm(row: Mapping[str, Any]) -> bool:
    return not any(row["disturbed"]) and max(abs(row["drift"]), abs(row["drift_of_repeat"])) <= DRIFT


def _key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["case"], row["runtime"].partition("/")[2].partition("-")[0], row["precision"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--runtimes", nargs="+", default=["executorch", "litert"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8-static", "int8-dynamic"])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    path = given.out / "profiling.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    calm = {_key(row) for row in rows if is_calm(row)}
    for case in given.cases:
        for precision in given.precisions:
            for runtime in given.runtimes:
                if (case, runtime, precision) in calm:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    row = run(case, runtime, precision, given.count, Path(folder))
                rows = [*(each for each in rows if _key(each) != _key(row)), row]
                result = {
                    "date": datetime.now(UTC).isoformat(timespec="seconds"),
                    "device": LocalDevice().facts().model_dump(),
                    "torch": torch.__version__,
                    "threads": 1,
                    "count": given.count,
                    "rows": rows,
                }
                write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
                draw(rows, given.out / "profiling.png")
                print(json.dumps({key: value for key, value in rows[-1].items() if key != "networks"}), flush=True)


if __name__ == "__main__":
    main()
