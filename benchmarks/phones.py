"""Latency of networks on two phones: calibrated sums, networks never measured, and a phone measured ten times.

    python benchmarks/phones.py LATENCY_FOLDER

LATENCY_FOLDER holds tflite_cnn_ops_gpu.csv and tflite_cnn_e2e.csv of github.com/qed-usc/mobile-ml-benchmark: 102
CNNs on a Pixel 4 and a Galaxy S10, times in µs. Writes results/phones.json and .png beside this file.

Three questions. Calibration: measured operators of a network, and a slope for each kind of operator (or one line
for all) fitted to all other networks. Unseen:
the network's operators and time are never seen, only its architecture; held out by network and by
family (variants of one design are held out together). Transfer: ten networks timed on the S10, one drawn from each
tenth of the Pixel 4's times; all others are predicted from their times on the Pixel 4, with one of its core
configurations as reference, or with all of the same processor (the GPU has one).

How much of an error is the data's own is told beside them: the scatter that is left about a smooth function of
what is known of a network ("floor"), and what a calibration of measured operators leaves of the judged networks.

The predictor's form and constants were chosen on the families in TUNING alone, and none of these is in any number
about unseen networks or transfer. A calibration has nothing to tune: it is reported on all networks.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maestro_edge.devices import LocalDevice
from maestro_edge.profiling import NetworkPredictor, Transfer
from maestro_edge.profiling.calibration import fit_kinds, kinds_left_out_ms, left_out_ms
from maestro_edge.profiling.features import Features, kind_of
from maestro_edge.profiling.foreign import mobile_benchmark
from maestro_edge.values import NetworkRow, Stated, write_atomically

RESULTS = Path(__file__).parent / "results"
PHONES = {"pixel4": "Pixel 4", "s10": "Galaxy S10"}

FAMILIES = {
    "resnet": r"(se)?(pre)?resnet(bc)?\d|diracnet",
    "mobilenet": r"(fd)?mobilenetb?_",
    "mobilenetv2": "mobilenetv2",
    "mobilenetv3": "mobilenetv3",
    "searched": "fbnet|mnasnet|proxylessnas|spnasnet",
    "regnet": "regnet",
    "squeezenet": "squeeze",
    "resnext": "resnext",
    "densenet": "densenet|peleenet",
    "efficientnet_edge": "efficientnet_edge",
    "hardnet": "hardnet",
    "hrnet": "hrnet",
}
"""Designs by name; a network of none is a family of its own."""

TUNING = {"mobilenetv2", "squeezenet", "densenet", "hrnet", "bninception", "resnext"}
SEEDS, SAMPLES, COVERAGE = 10, 10, 0.9

ALIKE = {
    "1large": "1large",
    "2large": "2med",
    "1med": "1med",
    "2med": "2med",
    "1large2med": "3med",
    "1small": "1small",
    "2small": "2small",
    "3small": "3small",
    "4small": "4small",
    "gpu": "gpu",
}
"""S10's cores → the Pixel 4's that are the first reference: as many of the same kind, where it has them."""

Operators = dict[str, list[tuple[Features, float]]]


def family(name: str) -> str:
    return next((found for found, pattern in FAMILIES.items() if re.match(pattern, name)), name)


class Data:
    """All times in ms, by network."""

    def __init__(self, folder: Path) -> None:
        e2e = folder / "tflite_cnn_e2e.csv"
        self.whole: dict[str, dict[str, NetworkRow]] = {
            column: {row.network: row for row in mobile_benchmark.read(e2e, column).networks}
            for column in mobile_benchmark.columns(e2e)
            if column.endswith("|float")
        }
        self.operators = {phone: self._operators(folder, phone) for phone in PHONES}
        self.names = sorted(self.operators["pixel4"])
        self.judged = [name for name in self.names if family(name) not in TUNING]

    def _operators(self, folder: Path, phone: str) -> Operators:
        found: Operators = {}
        told = mobile_benchmark.read(folder / "tflite_cnn_ops_gpu.csv", f"{phone}|gpu|float")
        for row in told.operators:
            found.setdefault(row.network, []).append((row.features or {}, row.ms))
        return found

    def ms(self, column: str, names: Sequence[str]) -> npt.NDArray[np.float64]:
        return np.array([self.whole[column][name].ms for name in names])


def errors(predicted: npt.ArrayLike, measured: npt.ArrayLike, names: Sequence[str]) -> dict[str, Any]:
    """MAPE, share within ±10 % and the three worst networks, in per cent."""
    relative = np.array(predicted, float).ravel() / np.array(measured, float).ravel() - 1
    worst = np.argsort(-np.abs(relative))[:3]
    return {
        "networks": len(names),
        "mape_percent": round(100 * float(np.abs(relative).mean()), 2),
        "within_10_percent": round(100 * float((np.abs(relative) <= 0.1).mean()), 1),
        "bias_percent": round(100 * float(relative.mean()), 2),
        "worst": {names[index]: round(100 * float(relative[index]), 1) for index in worst},
    }


def spearman(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Correlation of ranks; times in these files have no ties."""
    ranks = np.array([np.argsort(np.argsort(values)) for values in (first, second)], float)
    return float(np.corrcoef(ranks)[0][1])


def calibration(data: Data, phone: str) -> dict[str, Any]:
    """Measured operators, summed by kind, through slopes that have not seen the network; and through a line."""
    kinds = sorted({kind_of(features) for rows in data.operators[phone].values() for features, _ in rows})
    summed = np.zeros((len(data.names), len(kinds)))
    for at, name in enumerate(data.names):
        for features, ms in data.operators[phone][name]:
            summed[at, kinds.index(kind_of(features))] += ms
    measured = data.ms(f"{phone}|gpu|float", data.names)
    groups = np.array([family(name) for name in data.names])
    by_family = np.empty_like(measured)
    for group in set(groups):
        own = groups == group
        slopes, intercept_ms = fit_kinds(summed[~own], measured[~own])
        by_family[own] = summed[own] @ slopes + intercept_ms
    left_out = kinds_left_out_ms(summed, measured)
    judged = np.isin(data.names, data.judged)
    slopes, intercept_ms = fit_kinds(summed, measured)
    return {
        "raw sum": errors(summed.sum(1), measured, data.names),
        "one line, leave one network out": errors(left_out_ms(summed.sum(1), measured), measured, data.names),
        "leave one network out": errors(left_out, measured, data.names),
        "leave one network out, judged networks": errors(left_out[judged], measured[judged], data.judged),
        "leave a family out": errors(by_family, measured, data.names),
        "slopes": {kind: round(slope, 2) for kind, slope in zip(kinds, slopes.tolist(), strict=True)},
        "intercept_ms": round(intercept_ms, 3),
    }


def noise(data: Data, phone: str) -> dict[str, Any]:
    """How exact the times themselves are: their own deviation, twins, and equal operators timed twice."""
    rows = [data.whole[f"{phone}|gpu|float"][name] for name in data.names]
    deviations = [
        row.timing.std_ms / row.ms for row in rows if isinstance(row.timing, Stated) and row.timing.std_ms
    ]
    times: dict[str, list[float]] = {}
    shapes: dict[str, str] = {}
    for name in data.names:
        for features, ms in data.operators[phone][name]:
            times.setdefault(json.dumps(features, sort_keys=True), []).append(ms)
        shapes[name] = json.dumps(sorted(json.dumps(f, sort_keys=True) for f, _ in data.operators[phone][name]))
    twins = [(a, b) for i, a in enumerate(data.names) for b in data.names[i + 1 :] if shapes[a] == shapes[b]]
    apart = [abs(np.log(np.divide(*data.ms(f"{phone}|gpu|float", pair)))) for pair in twins]
    equal = [np.std(found) / np.mean(found) for found in times.values() if len(found) >= 4]
    return {
        "std_over_mean_percent": [round(100 * float(q), 1) for q in np.quantile(deviations, [0.5, 0.9])],
        "equal_operators_cv_percent": [round(100 * float(q), 1) for q in np.quantile(equal, [0.5, 0.9])],
        "networks_of_equal_operators": [list(pair) for pair in twins],
        "their_whole_times_differ_percent": [round(100 * float(value), 1) for value in apart],
    }


def floor(data: Data, phone: str) -> dict[str, Any]:
    """What is left about any smooth function of the measured sum, and of six totals of the operators.

    A Gaussian process on the log of whole time over sum finds how much is smooth and how much is scatter; a
    predictor that knew the smooth part would still be off by sqrt(2 / pi) of the scatter's deviation on average.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    rows = [data.operators[phone][name] for name in data.names]
    totals = ("elements_in", "elements_out", "weights", "macs")
    columns = [[sum(ms for _, ms in row) for row in rows], [len(row) for row in rows]]
    columns += [[sum(features[total] for features, _ in row) for row in rows] for total in totals]
    logs = np.log(np.array(columns).T)
    ratio = np.log(data.ms(f"{phone}|gpu|float", data.names)) - logs[:, 0]
    ratio -= ratio.mean()
    found = {}
    for label, count in (("of the sum", 1), ("of six totals", 6)):
        z = (logs[:, :count] - logs[:, :count].mean(0)) / logs[:, :count].std(0)
        smooth = ConstantKernel(0.1, (1e-4, 10)) * RBF(np.ones(count), (0.1, 100))
        with warnings.catch_warnings():  # a total that does not matter has its length at the bound
            warnings.simplefilter("ignore", ConvergenceWarning)
            process = GaussianProcessRegressor(smooth + WhiteKernel(0.002, (1e-6, 1))).fit(z, ratio)
        inverse = np.linalg.inv(process.kernel_(z))
        left_out = inverse @ ratio / np.diag(inverse)  # Rasmussen and Williams, section 5.4.2
        scatter = float(np.sqrt(process.kernel_.k2.noise_level))
        found[label] = {
            **errors(np.exp(-left_out), np.ones_like(ratio), data.names),
            "scatter_percent": round(100 * scatter, 2),
            "floor_mape_percent": round(100 * math.sqrt(2 / math.pi) * scatter, 2),
        }
    return found


def unseen(data: Data, phone: str, *, by_family: bool) -> dict[str, Any]:
    """Networks of which only the architecture is known."""
    whole = dict(zip(data.names, data.ms(f"{phone}|gpu|float", data.names).tolist(), strict=True))
    if by_family:
        folds = [[n for n in data.judged if family(n) == f] for f in sorted({family(n) for n in data.judged})]
    else:
        folds = [[name] for name in data.judged]
    names, found, row_errors, row_hits = [], [], [], []
    for fold in folds:
        known = {name: rows for name, rows in data.operators[phone].items() if name not in fold}
        groups = {name: family(name) if by_family else name for name in known}
        model = NetworkPredictor.fit(known, whole, groups, coverage=COVERAGE)
        for name in fold:
            names.append(name)
            features, ms = zip(*data.operators[phone][name], strict=True)
            found.append(model.predict(features))
            for estimate, measured in zip(model.operators.predict(features), ms, strict=True):
                row_errors.append(abs(estimate.ms / measured - 1))
                row_hits.append(estimate.low_ms <= measured <= estimate.high_ms)
    measured_ms = [whole[name] for name in names]
    hits = [e.low_ms <= ms <= e.high_ms for e, ms in zip(found, measured_ms, strict=True)]
    return {
        **errors([estimate.ms for estimate in found], measured_ms, names),
        "folds": len(folds),
        "interval_coverage_percent": round(100 * float(np.mean(hits)), 1),
        "operators_mape_percent": round(100 * float(np.mean(row_errors)), 2),
        "operators_interval_coverage_percent": round(100 * float(np.mean(row_hits)), 1),
        "predicted_ms": {name: round(estimate.ms, 3) for name, estimate in zip(names, found, strict=True)},
    }


def column_noise(data: Data, column: str) -> dict[str, Any]:
    """Standard deviation over mean of the networks' own runs, and where it is worst."""
    rows = [data.whole[column][name] for name in data.judged]
    shares = {row.network: (row.timing.std_ms or 0.0) / row.ms for row in rows if isinstance(row.timing, Stated)}
    worst = sorted(shares, key=lambda name: -shares[name])[:3]
    one = {row.network: data.whole["s10|1large|float"][row.network].ms for row in rows}
    slower = {row.network: round(row.ms / one[row.network], 2) for row in rows if row.ms > 1.5 * one[row.network]}
    return {
        # With a large core among more cores, no network can honestly be this much slower than with it alone.
        **({"times_one_large_core": slower} if "large" in column else {}),
        "std_over_mean_percent": [
            round(100 * float(q), 1) for q in np.quantile(list(shares.values()), [0.5, 0.9])
        ],
        "worst": {name: round(100 * shares[name], 1) for name in worst},
    }


def transfer(data: Data, cores: str) -> dict[str, Any]:
    """Ten networks on the S10 and all on the Pixel 4: every judged network that is not among the ten."""
    first = f"pixel4|{ALIKE[cores]}|float"
    others = [
        column
        for column in data.whole
        if column.startswith("pixel4") and column != first and ("|gpu|" in column) == (cores == "gpu")
    ]
    target = f"s10|{cores}|float"
    by_time = sorted(data.judged, key=lambda name: data.whole[first][name].ms)
    trials: dict[str, list[tuple[float, float, float, float]]] = {"one reference": [], "all": []}
    for seed in range(SEEDS):
        draw = np.random.default_rng(seed)
        drawn = [str(draw.choice(part)) for part in np.array_split(by_time, SAMPLES)]
        rest = [name for name in data.judged if name not in drawn]
        for label, columns in (("one reference", [first]), ("all", [first, *others])):
            model = Transfer.fit(_references(data, columns, drawn), data.ms(target, drawn).tolist())
            found, measured = model.predict(_references(data, columns, rest)), data.ms(target, rest)
            relative = np.array([e.ms for e in found]) / measured - 1
            hits = [e.low_ms <= ms <= e.high_ms for e, ms in zip(found, measured.tolist(), strict=True)]
            order = spearman([e.ms for e in found], measured)
            trials[label].append(
                (
                    order,
                    float(np.abs(relative).mean()),
                    float((np.abs(relative) <= 0.1).mean()),
                    float(np.mean(hits)),
                )
            )
    return {label: _spread_of(rows) for label, rows in trials.items()}


def _references(data: Data, columns: Sequence[str], names: Sequence[str]) -> list[list[float]]:
    return [[data.whole[column][name].ms for column in columns] for name in names]


def _spread_of(rows: Sequence[tuple[float, float, float, float]]) -> dict[str, Any]:
    order, mape, within, hits = (np.array(column) for column in zip(*rows, strict=True))
    return {
        "spearman_mean": round(float(order.mean()), 4),
        "spearman_worst": round(float(order.min()), 4),
        "mape_percent_mean": round(100 * float(mape.mean()), 2),
        "mape_percent_worst": round(100 * float(mape.max()), 2),
        "within_10_percent_mean": round(100 * float(within.mean()), 1),
        "interval_coverage_percent": round(100 * float(hits.mean()), 1),
    }


def draw(data: Data, result: Mapping[str, Any], path: Path) -> None:
    """Predicted over measured for unseen families, and Spearman's coefficient of the transfer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(14, 4.2))
    for panel, (phone, title) in zip(panels, PHONES.items(), strict=False):
        found = result["unseen"][phone]["by family"]
        predicted = found["predicted_ms"]
        measured = data.ms(f"{phone}|gpu|float", list(predicted))
        panel.loglog(measured, list(predicted.values()), ".", color="#0072B2")
        ends = np.array([measured.min(), measured.max()])
        panel.loglog(ends, ends, color="#666666", lw=1)
        panel.fill_between(ends, 0.9 * ends, 1.1 * ends, color="#666666", alpha=0.2, lw=0, label="±10 %")
        panel.set_title(f"{title} GPU, family unseen: MAPE {found['mape_percent']} %")
        panel.set_xlabel("measured ms")
        panel.set_ylabel("predicted ms")
        panel.legend()
    columns = list(result["transfer"])
    for label, colour in (("one reference", "#0072B2"), ("all", "#56B4E9")):
        for statistic, marker in (("mean", "o"), ("worst", "x")):
            values = [result["transfer"][cores][label][f"spearman_{statistic}"] for cores in columns]
            panels[2].plot(values, columns, marker, color=colour, label=f"{label}, {statistic}")
    panels[2].axvline(0.95, color="#D55E00", label="target")
    panels[2].set_title(f"Pixel 4 → S10 from {SAMPLES}: Spearman")
    panels[2].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    began, began_cpu = time.monotonic(), time.process_time()
    data = Data(given.data)
    result: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": LocalDevice().facts().model_dump(),
        "scikit-learn": version("scikit-learn"),
        "numpy": np.__version__,
        "data": "github.com/qed-usc/mobile-ml-benchmark, CNNs, float",
        "tuned_on": [name for name in data.names if family(name) in TUNING],
        "families": {name: family(name) for name in data.judged},
        "interval": COVERAGE,
        "calibration": {phone: calibration(data, phone) for phone in PHONES},
        "noise": {phone: noise(data, phone) for phone in PHONES},
        "floor": {phone: floor(data, phone) for phone in PHONES},
        "transfer": {cores: transfer(data, cores) for cores in ALIKE},
        "transfer_noise": {cores: column_noise(data, f"s10|{cores}|float") for cores in ALIKE},
        "unseen": {},
    }
    for phone, title in PHONES.items():
        print(title, "calibration:", json.dumps(result["calibration"][phone]), flush=True)
        print(title, "noise:", json.dumps(result["noise"][phone]), flush=True)
        print(title, "floor:", json.dumps(result["floor"][phone]), flush=True)
    for cores, found in result["transfer"].items():
        print(
            f"Pixel 4 → S10 {cores}:", json.dumps(found), json.dumps(result["transfer_noise"][cores]), flush=True
        )
    for phone, title in PHONES.items():
        result["unseen"][phone] = {}
        for label, by_family in (("by network", False), ("by family", True)):
            found = unseen(data, phone, by_family=by_family)
            result["unseen"][phone][label] = found
            shown = {name: value for name, value in found.items() if name != "predicted_ms"}
            print(title, "unseen,", label, json.dumps(shown), flush=True)
    result["seconds"] = round(time.monotonic() - began)
    result["processor_seconds"] = round(time.process_time() - began_cpu)
    write_atomically(given.out / "phones.json", (json.dumps(result, indent=1) + "\n").encode())
    draw(data, result, given.out / "phones.png")


if __name__ == "__main__":
    main()
