"""The whole front of accuracy against measured milliseconds, beside what needs no low rank at all."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from maestro_edge.devices import Device
from maestro_edge.planning import reachable_ms
from maestro_edge.planning.budgets import default_margin
from maestro_edge.recipes.deploy import measure_variants
from maestro_edge.recipes.plans import best_plans
from maestro_edge.recipes.run import Progress, Run
from maestro_edge.recipes.variants import export_variants
from maestro_edge.runtimes import MeasuringProtocol, Runtime
from maestro_edge.values import LatencyTable, Precision, RankPlan, Saved, Sensitivity, Variant, write_atomically

__all__ = ["RIVALS", "Front", "beaten_by", "spread", "sweep_run"]

RIVALS: tuple[Precision, ...] = ("int8-dynamic", "int8-static")
"""In which the dense network is exported beside fp32: what any other tool offers without a rank."""


COLUMNS = (
    *("name", "precision", "predicted_ms", "p50_ms", "p90_ms", "validation_accuracy", "accuracy"),
    *("size_bytes", "params", "macs", "beaten_by"),
)
"""Of the CSV; `accuracy` is that on the test split."""


class Front(Saved):
    """Files of one run on one device and runtime, timed in one interleaved run, and what beats each.

    `beaten` names, for a file, one that is at least as accurate on validation images and at least as fast.
    """

    device: str
    network: str
    variants: tuple[Variant, ...]
    beaten: dict[str, str]
    left_out: tuple[str, ...] = ()

    def as_csv(self) -> str:
        """One line a file, in the order of their time."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for variant in sorted(self.variants, key=_p50):
            assert variant.measured_ms is not None
            row = {
                **variant.model_dump(),
                "p50_ms": variant.measured_ms.p50,
                "p90_ms": variant.measured_ms.p90,
                "beaten_by": self.beaten.get(variant.name, ""),
            }
            writer.writerow(row[column] for column in COLUMNS)
        return text.getvalue()


def sweep_run(
    run: Run,
    runtime: Runtime,
    device: Device,
    tables: Sequence[LatencyTable],
    sensitivity: Sensitivity,
    *,
    protocol: MeasuringProtocol,
    count: int = 8,
    progress: Progress | None = None,
) -> Front:
    """Plan `count` budgets between the fastest plan and dense on each table, export and measure all of them.

    Beside them stand the dense network in fp32 and in `RIVALS`. The plans of a table are nested. Writes
    sweep-RUNTIME.json and .csv in the run's folder.

    Raises:
        As best_plans(), export_variant() and the runtime's measure().
    """
    plans: list[RankPlan] = []
    for table in tables:
        margin, gauge = default_margin("ms", run.network, table), run.gauge_ranks(table)
        budgets = spread(
            reachable_ms(run.network, table, sensitivity, gauge=gauge) / (1 - margin) * 1.001,
            table.predict_ms(run.network, {}),
            count,
        )
        plans += best_plans(run, table, sensitivity, budgets)
    variants, left_out = export_variants(run, [(runtime, each) for each in ("fp32", *RIVALS, *plans)], progress)
    measured, _ = measure_variants(run, variants, runtime, device, protocol)
    front = Front(
        device=device.facts().name,
        network=run.network.name,
        variants=tuple(measured),
        beaten=beaten_by(measured),
        left_out=tuple(left_out),
    )
    front.save(run.folder / f"sweep-{runtime.name}.json")
    write_atomically(run.folder / f"sweep-{runtime.name}.csv", front.as_csv().encode())
    return front


def spread(low_ms: float, high_ms: float, count: int) -> list[float]:
    """`count` budgets from low to high, evenly by ratio; four digits, as somebody would ask for, rounded up."""
    shares = [index / max(1, count) for index in range(count)]
    return [_up(low_ms * (max(low_ms, high_ms) / low_ms) ** share) for share in shares]


def _up(ms: float) -> float:
    return float(f"{ms * 1.0005:.4g}")


def beaten_by(variants: Sequence[Variant]) -> dict[str, str]:
    """Of each file that another one beats in accuracy and time, the fastest of those that do."""
    found = {}
    for variant in variants:
        better = [
            other
            for other in variants
            if _accuracy(other) >= _accuracy(variant)
            and _p50(other) <= _p50(variant)
            and (_accuracy(other), -_p50(other)) != (_accuracy(variant), -_p50(variant))
        ]
        if better:
            found[variant.name] = min(better, key=_p50).name
    return found


def _p50(variant: Variant) -> float:
    assert variant.measured_ms is not None
    return variant.measured_ms.p50


def _accuracy(variant: Variant) -> float:
    assert variant.validation_accuracy is not None
    return variant.validation_accuracy
