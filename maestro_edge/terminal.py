"""Devices, plans and variants as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from maestro_edge.profiling.inventory import Listing
from maestro_edge.values import DeviceFacts, Manifest, RankPlan, Variant

__all__ = ["delegation_lines", "devices_table", "fleet_table", "front_table", "plan_table", "variants_table"]


def devices_table(devices: Sequence[Listing]) -> Table:
    """A row each: what the device is, its clock and heat, the runtimes it has and what is missing."""
    table = Table("device", "soc", "cores", "system", "clock", "heat", "runtimes")
    for device in devices:
        facts = device.facts
        what = (*device.runtimes, *device.remarks)
        if facts is None:
            table.add_row(device.name, "", "", "", "", "", "\n".join(what))
            continue
        system = facts.os if facts.build is None else f"{facts.os}\n{facts.build}"
        name = f"{device.name}\n({facts.name})"
        table.add_row(name, facts.soc, _cores(facts), system, _clock(facts), _heat(facts), "\n".join(what))
    return table


def _cores(facts: DeviceFacts) -> str:
    big, cores = len(facts.big_cores), len(facts.core_mhz)
    return f"{facts.cores}, {big} of them big" if big < cores else str(facts.cores or "not told")


def _clock(facts: DeviceFacts) -> str:
    top = f"{max(facts.core_mhz) / 1000:.1f} GHz" if facts.core_mhz else "not readable"
    return f"{top}, {facts.governor}" if facts.governor else top


def _heat(facts: DeviceFacts) -> str:
    if facts.temperature_c is None:
        return "not readable"
    return f"{facts.temperature_c:.0f} °C{', throttled' if facts.throttled else ''}"


def plan_table(plan: RankPlan) -> Table:
    """Rank, params, MACs, kB and ms of every layer, and the totals beside the dense network.

    A mixed plan has the precision of every layer, too.
    """
    mixed = plan.precision == "mixed"
    promises = ", ".join(
        f"budget {promise.budget}, predicted {promise.budget.say(promise.predicted)}" for promise in plan.promises
    )
    title = f"{plan.network_name} on {plan.device}, {plan.runtime} {plan.runtime_version}: {promises}"
    table = Table(
        "layer", "shape", title=title, title_justify="left", caption=_losses(plan), caption_justify="left"
    )
    for heading in ("rank", *(("precision",) if mixed else ()), "params", "MACs", "kB", "ms", "dense ms"):
        table.add_column(heading, justify="right")
    for layer in plan.layers:
        spec, rank = layer.spec, layer.rank
        numbers = (spec.params(rank), spec.macs(rank), round(spec.size_bytes(rank) / 1000))
        table.add_row(
            layer.name,
            str(spec.model_copy(update={"int8": False})),
            str(rank),
            *(("int8-dynamic" if spec.int8 else "fp32",) if mixed else ()),
            *(f"{number:,}" for number in numbers),
            f"{layer.ms:.3f}",
            f"{layer.dense_ms:.3f}",
        )
    table.add_section()
    outside = ("", "", *(("fp32",) if mixed else ()))
    table.add_row(
        "outside", *outside, f"{plan.other_params:,}", f"{plan.other_macs:,}", "", f"{plan.other_ms:.3f}", ""
    )
    for name, dense in (("total", False), ("dense network", True)):
        totals = plan.totals(dense=dense)
        table.add_row(
            name,
            *("" for _ in outside),
            f"{totals.params:,}",
            f"{totals.macs:,}",
            f"{round(totals.size_bytes / 1000):,}",
            f"{totals.ms:.3f}",
            "",
        )
    return table


def _losses(plan: RankPlan) -> str:
    """The sum over the layers, how near it is to the least possible, and what they lose together."""
    told = f"validation loss: layers alone add {plan.loss_increase:+.4f}, at most {plan.gap:.4f} above the optimum"
    cut = plan.measured_loss
    if cut is None:
        return told
    return (
        f"{told}; together, measured on {cut.n} targets, {cut.loss_increase:+.4f} ± {cut.loss_se:.4f} "
        f"(top-1 {-100 * cut.top1_drop:+.1f} ± {100 * cut.top1_se:.1f} points)"
    )


def delegation_lines(manifest: Manifest) -> list[str]:
    """How much of their graphs the accelerated backend takes; files of which it is the same share a line."""
    names: dict[str, list[str]] = {}
    for variant in manifest.variants:
        if variant.delegation is not None:
            names.setdefault(str(variant.delegation), []).append(variant.name)
    return [f"{', '.join(alike)}: {what}" for what, alike in names.items()]


def variants_table(manifest: Manifest) -> Table:
    """Every file: budget, predicted and measured ms, speed-up over the dense file of its runtime, accuracy."""
    table = Table(title=f"{manifest.model} on {manifest.device.name}", title_justify="left")
    for heading in (
        "variant",
        "budget",
        "predicted",
        "measured p50",
        "p90",
        "speed-up",
        "top-1 %",
        "kB",
        "max error",
    ):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    dense = {v.runtime: v.measured_ms for v in manifest.variants if not v.is_planned}
    for variant in manifest.variants:
        measured, rival = variant.measured_ms, dense.get(variant.runtime)
        kept = "" if measured is None or not variant.is_planned else " ✗" if variant.missed else " ✓"
        table.add_row(
            variant.name,
            "\n".join(map(str, variant.bounds)) or "dense",
            "" if variant.predicted_ms is None else f"{variant.predicted_ms:.3f}",
            "not measured" if measured is None else f"{measured.p50:.3f}{kept}",
            "" if measured is None else f"{measured.p90:.3f}",
            "" if measured is None or rival is None else f"{rival.p50 / measured.p50:.2f}x",
            f"{100 * variant.accuracy:.1f}",
            f"{variant.size_bytes / 1000:,.0f}",
            "not run here" if variant.max_abs_error is None else f"{variant.max_abs_error:.1e}",
        )
    return table


def front_table(variants: Sequence[Variant], beaten: Mapping[str, str]) -> Table:
    """Measured files from the fastest on: time, accuracy, size, and what beats each in both time and accuracy."""
    table = Table("variant")
    for heading in ("predicted ms", "measured p50", "validation top-1 %", "test top-1 %", "kB"):
        table.add_column(heading, justify="right")
    table.add_column("beaten by")
    timed = [(variant.measured_ms.p50, variant) for variant in variants if variant.measured_ms is not None]
    for p50, variant in sorted(timed, key=lambda pair: pair[0]):
        validation = variant.validation_accuracy
        table.add_row(
            variant.name,
            "" if variant.predicted_ms is None else f"{variant.predicted_ms:.3f}",
            f"{p50:.3f}",
            "" if validation is None else f"{100 * validation:.1f}",
            f"{100 * variant.accuracy:.1f}",
            f"{variant.size_bytes / 1000:,.0f}",
            beaten.get(variant.name, ""),
        )
    return table


def fleet_table(groups: Sequence[Sequence[RankPlan]]) -> Table:
    """A row a device, under the variant that it shares with others or has for itself."""
    table = Table("variant", "device", "runtime")
    for heading in ("budget", "predicted", "dense ms", "loss", "params"):
        table.add_column(heading, justify="right")
    for number, plans in enumerate(groups, start=1):
        for item in plans:
            table.add_row(
                str(number),
                item.device,
                f"{item.runtime} {item.runtime_version} {item.precision}",
                "\n".join(str(promise.budget) for promise in item.promises),
                "\n".join(promise.budget.say(promise.predicted) for promise in item.promises),
                f"{item.dense_ms:.3f}",
                f"{item.loss_increase:+.4f}",
                f"{item.totals().params:,}",
            )
        table.add_section()
    return table
