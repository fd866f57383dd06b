"""One network's files for several devices: exported for all, timed on one, each chosen by its device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from maestro_edge.devices import Device
from maestro_edge.errors import TableError
from maestro_edge.planning import Shared
from maestro_edge.recipes.deploy import measure_variants
from maestro_edge.recipes.run import Progress, Run
from maestro_edge.recipes.variants import export_variant, manifest_of
from maestro_edge.runtimes import MeasuringProtocol, Runtime, load
from maestro_edge.values import Choice, DeviceFacts, Manifest, RankPlan, Variant, variant_name

__all__ = ["export_fleet", "fleet_files", "fleet_manifest_path", "time_fleet"]


def fleet_manifest_path(run: Run) -> Path:
    return run.folder / "fleet" / "manifest.json"


def fleet_files(run: Run, manifest: Manifest) -> dict[str, Path]:
    """The exported file of each `Variant.file`."""
    return {each.file: run.folder / "fleet" / "files" / each.file for each in manifest.variants}


def export_fleet(
    run: Run, groups: Sequence[Shared], devices: Sequence[DeviceFacts], *, progress: Progress | None = None
) -> Path:
    """Export one file for each group of `devices`, those of the tables, with the tables' runtime; none is timed.

    Each device's choice is by its SoC; of several with one SoC and runtime the first counts. Any other device
    gets, per runtime, the file of fewest MACs. Returns the path of the manifest, fleet/manifest.json in the run's
    folder.

    Raises:
        DataError: the run is of text.
        ExportError: a file cannot be made, or does not compute what the model does.
        MissingExtra: a table's runtime is not installed here.
        TableError: a device is emulated, whose times say nothing.
    """
    run.require_images("export")
    for item in (item for group in groups for item in group.plans):
        if item.source == "emulated":
            raise TableError(f"the table of {item.device} is of an emulated device: give a measured one")
    facts = {device.name: device for device in devices}
    variants, choices = list[Variant](), list[Choice]()
    for number, group in enumerate(groups, start=1):
        made = _export(run, group.plans, number)
        variants.append(made)
        choices += [
            Choice(soc=facts[item.device].soc, runtime=made.runtime, variant=made.name) for item in group.plans
        ]
        if progress is not None:
            progress(number, len(groups), f"exported {made.file}")
    manifest = manifest_of(run, devices[0], variants)
    manifest = manifest.model_copy(update={"choices": tuple(dict.fromkeys((*choices, *_fewest_macs(variants))))})
    return manifest.save(fleet_manifest_path(run))


def _export(run: Run, plans: Sequence[RankPlan], number: int) -> Variant:
    """The file of a group; what each device's plan promises is in that plan."""
    first = plans[0]
    name = variant_name(first.runtime, first.precision, f"fleet-{number}")
    variant = export_variant(run, load(first.runtime), first, folder=run.folder / "fleet" / "files", name=name)
    devices = ", ".join(item.device for item in plans)
    return variant.model_copy(
        update={
            "budget_ms": None,
            "budgets": (),
            "predicted_ms": None,
            "planned_on": f"{devices}/{first.runtime}-{first.runtime_version}",
        }
    )


def _fewest_macs(variants: Sequence[Variant]) -> list[Choice]:
    runtimes = dict.fromkeys(variant.runtime for variant in variants)
    least = [min((v for v in variants if v.runtime == name), key=lambda v: v.macs) for name in runtimes]
    return [Choice(runtime=variant.runtime, variant=variant.name) for variant in least]


def time_fleet(
    run: Run,
    runtimes: Sequence[Runtime],
    device: Device,
    *,
    protocol: MeasuringProtocol,
    progress: Progress | None = None,
) -> Manifest:
    """Time the fleet's files of `runtimes` on one device: apps take from it how the files compare.

    Raises:
        TableError: no fleet was exported, or a file was changed since.
    """
    manifest = Manifest.load(fleet_manifest_path(run))
    files, measured = fleet_files(run, manifest), dict[str, Variant]()
    for done, runtime in enumerate(runtimes, start=1):
        variants = [variant for variant in manifest.variants if variant.runtime == runtime.name]
        if variants:
            timed, _ = measure_variants(run, variants, runtime, device, protocol, files=files)
            measured |= {variant.name: variant for variant in timed}
        if progress is not None:
            progress(done, len(runtimes), f"{runtime.name}: timed {len(variants)}")
    # Times of another device are no longer compared with these.
    update: Mapping[str, object] = {
        "device": device.facts(),
        "variants": tuple(
            measured.get(each.name, each.model_copy(update={"measured_ms": None})) for each in manifest.variants
        ),
    }
    manifest = manifest.model_copy(update=update)
    manifest.save(fleet_manifest_path(run))
    return manifest
