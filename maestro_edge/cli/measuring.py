"""Devices and latency tables: devices, runners, profile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from maestro_edge.cli.console import app, claimed, command, console, guarded, printing, steps
from maestro_edge.cli.options import (
    TIMED,
    OwnModel,
    Profiles,
    RunFolder,
    Threads,
    Timed,
    protocol_of,
)
from maestro_edge.cli.profiles import COMMANDS

if TYPE_CHECKING:
    from maestro_edge.recipes.run import Progress, Run
    from maestro_edge.values import LatencyTable, Network

profiles_app = typer.Typer(
    help="Look at, compare, check and import latency tables; probes for iPhones.", no_args_is_help=True
)
for _name, _function in COMMANDS.items():
    profiles_app.command(_name)(guarded(printing(_function)))
app.add_typer(profiles_app, name="profiles")

devices_app = typer.Typer(help="List what can be measured on, its runtimes, and what is missing.")
app.add_typer(devices_app, name="devices")


@devices_app.callback(invoke_without_command=True)
@guarded
def devices(
    context: typer.Context,
    device: Annotated[
        list[str] | None, typer.Option(help="Also look at this one, such as ssh:pi@raspberrypi; repeat it.")
    ] = None,
) -> None:
    """List what can be measured on, its runtimes, and what is missing."""
    if context.invoked_subcommand is not None:
        return
    from maestro_edge.profiling.inventory import list_devices
    from maestro_edge.terminal import devices_table

    console().print(devices_table(list_devices(device or ())))


@devices_app.command("clean")
@guarded
def clean_device(device: Annotated[str, typer.Argument(help="Such as ssh:pi@raspberrypi or adb:SERIAL.")]) -> None:
    """Remove everything that any session left on a device; what is measured there now fails."""
    from maestro_edge.devices import connect
    from maestro_edge.devices.claims import clean

    clean(connect(device))
    console().print(f"{device}: nothing of maestro-edge is left there")


@command
def runners() -> None:
    """Build the native ExecuTorch runner for phones and boards without Python, and show where it is."""
    from maestro_edge.runtimes import digest, size_bytes
    from maestro_edge.runtimes.native import ARCHITECTURES, build

    for arch in ARCHITECTURES:
        folder = build(arch)
        megabytes = size_bytes(folder) / 1e6
        console().print(f"{arch}  {megabytes:.1f} MB  sha256 {digest(folder)}\n  {folder}", soft_wrap=True)


@command
def profile(
    run: RunFolder,
    runtime: Timed = None,
    device: Annotated[
        list[str] | None, typer.Option(help="Where to measure; repeat it for several at once. [default: local]")
    ] = None,
    profiles: Profiles = Path("profiles"),
    threads: Threads = 1,
    precision: Annotated[
        Literal["fp32", "fp16", "int8-dynamic", "int8-static", "mixed"],
        typer.Option(help="Of the files that are measured; mixed (LiteRT): layers in fp32, and in int8 beside."),
    ] = "fp32",
    check: Annotated[
        int, typer.Option(min=0, help="Measure this many random networks and print the prediction's error.")
    ] = 0,
    governor: Annotated[
        str | None, typer.Option(help="Set this frequency governor meanwhile (needs root there), then restore it.")
    ] = None,
    cool_to: Annotated[
        float | None, typer.Option(help="Wait before each run until the device is at most this warm, in °C.")
    ] = None,
    emulated: Annotated[
        bool, typer.Option(help="The devices are emulated: mark their tables, and repeat nothing for calm.")
    ] = False,
    gauge: Annotated[
        bool,
        typer.Option("--gauge", help="Also measure layers in gauge form, which plans then choose where faster."),
    ] = False,
    like: Annotated[
        Path | None,
        typer.Option(
            help="Another device's table, or of other networks: measure 7 layers and 3 networks, model the rest.",
            show_default=False,
        ),
    ] = None,
    model: OwnModel = None,
) -> None:
    """Measure every distinct layer at its ranks on one or more devices, and write the latency tables."""
    from concurrent.futures import ThreadPoolExecutor

    from maestro_edge.recipes.run import open_run
    from maestro_edge.runtimes import load_all
    from maestro_edge.values import LatencyTable, refuse_unwritable

    reference = None if like is None else LatencyTable.load(like)
    runtime = runtime or ([*TIMED] if reference is None else [reference.runtime])
    load_all(runtime)
    open_run(run, model=model)
    refuse_unwritable(profiles)  # before a device is waited for
    names = device or ["local"]
    protocol = protocol_of(threads).model_copy(update={"cool_to_c": cool_to})
    protocol = protocol.flow_only() if emulated else protocol
    with steps() as step, ThreadPoolExecutor(len(names)) as pool:

        def one(name: str) -> list[str]:
            # A thread of its own works on a model of its own: tracing hooks into its modules.
            own = open_run(run, model=model)
            return _profile_on(
                name,
                own,
                runtime,
                profiles,
                protocol,
                precision,
                check,
                governor,
                step,
                emulated=emulated,
                gauge=gauge,
                like=reference,
            )

        for found in [pool.submit(one, name) for name in names]:
            for line in found.result():
                console().print(line)


def _profile_on(
    name: str,
    run: Run,
    runtimes: list[str],
    profiles: Path,
    protocol: Any,
    precision: Any,
    check: int,
    governor: str | None,
    step: Callable[[str], Progress],
    *,
    emulated: bool,
    gauge: bool,
    like: LatencyTable | None,
) -> list[str]:
    from maestro_edge.profiling import governor as set_governor
    from maestro_edge.recipes.tables import check_prediction, profile_run
    from maestro_edge.runtimes import load_all

    lines = []
    with claimed(name) as device, set_governor(device, governor):
        for item in load_all(runtimes):
            title = item.name if name == "local" else f"{item.name} on {name}"
            table = profile_run(
                run,
                item,
                device,
                profiles=profiles,
                protocol=protocol,
                precision=precision,
                emulated=emulated,
                gauge=gauge,
                like=like,
                progress=step(title),
            )
            lines.append(_table_line(table, run.network, profiles))
            lines += [f"[yellow]{doubt}[/yellow]" for doubt in table.doubts(run.network)]
            if check:
                found = check_prediction(
                    run, table, item, device, count=check, protocol=protocol, progress=step(f"check {title}")
                )
                lines.append(
                    f"{table.title}: prediction against measurement over {check} random rank assignments: "
                    f"MAPE {100 * found.mape:.1f} %, worst {100 * found.worst:.1f} %; the dense network takes "
                    f"{100 * found.drift:+.1f} % against its time in the table (MAPE at equal speed "
                    f"{100 * found.mape_at_equal_speed:.1f} %)"
                )
    return lines


def _table_line(table: LatencyTable, network: Network, profiles: Path) -> str:
    fit = table.calibration(network)
    return (
        f"{table.title}: {len(table.rows)} rows, {fit.rest_ms:.3f} ms outside the layers, whole networks "
        f"within {100 * fit.loo_mape:.1f} % (leave one out)  →  {profiles / table.file_name}"
    )
