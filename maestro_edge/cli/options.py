"""Arguments and options that several commands have, and what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maestro_edge.cli.console import fail

if TYPE_CHECKING:
    from maestro_edge.values import Budget, Layout, Precision, Quantity

RunFolder = Annotated[Path, typer.Argument(help="Run folder, as made by 'train'.", show_default=False)]
OwnModel = Annotated[str | None, typer.Option("--model", help="The run's own package.module:function.")]
DataSource = Annotated[
    str, typer.Option("--data", help="digits, or cifar10:PATH, mnist:PATH, fashion-mnist:PATH, folder:PATH.")
]
ModelName = Annotated[str, typer.Argument(help="A package.module:function that returns a torch module.")]
DeviceName = Annotated[str, typer.Option("--device", help="Where to measure; see 'devices'.")]
Profiles = Annotated[Path, typer.Option("--profiles", help="Folder of latency tables.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads that the runtime uses.")]
Timed = Annotated[
    list[str] | None,
    typer.Option("--runtime", help="executorch, litert or onnx; repeat it. [default: executorch, litert]"),
]
BudgetMs = Annotated[
    list[str] | None, typer.Option("--budget-ms", help="Median milliseconds of a run; repeat it for more plans.")
]
BudgetP90 = Annotated[str | None, typer.Option(help="Milliseconds that 9 of 10 runs keep; for every plan.")]
BudgetKb = Annotated[str | None, typer.Option(help="Size of the file, in 1,000 bytes; for every plan.")]
BudgetMemory = Annotated[str | None, typer.Option(help="Peak memory of the process, in 1e6 bytes.")]
BudgetMmacs = Annotated[str | None, typer.Option(help="Multiply-accumulates of a run, in 1e6; for every plan.")]
BudgetParams = Annotated[str | None, typer.Option(help="Parameters; for every plan.")]
BudgetMj = Annotated[str | None, typer.Option(help="Millijoules of a run, where the table has them.")]
Precisions = Annotated[
    list[str] | None,
    typer.Option(
        "--precision",
        help="fp32, fp16, int8-dynamic, int8-static; on LiteRT mixed (each layer in fp32 or int8-dynamic); on "
        "Core ML palettised-6bit, int4-weights; repeat it to have plans in each. [default: fp32]",
    ),
]
Elastic = Annotated[
    bool,
    typer.Option(
        "--elastic", help="Plans whose weights one file holds once: each layer dense in all, or in none."
    ),
]
Rounds = Annotated[int, typer.Option(min=1, max=5, help="Measurements at most; with 1 nothing is planned again.")]
Seed = Annotated[int, typer.Option(help="Seeds data split, weights and sampling.")]
Epochs = Annotated[int | None, typer.Option("--epochs", min=1, help="Epochs of nested training.")]
DenseEpochs = Annotated[int | None, typer.Option("--dense-epochs", min=1, help="Epochs of dense training.")]

DEFAULT_MODEL = "maestro_edge.recipes.models:resnet8"
TIMED = ("executorch", "litert")


def budgets_ms(given: list[str] | None) -> tuple[float, ...]:
    from maestro_edge.values import check_budget

    return tuple(check_budget(budget) for budget in given or ())


def plan_budgets(ms: list[str] | None, *others: str | None) -> list[tuple[Budget, ...]]:
    """The budgets of each plan: one of `ms`, and all others."""
    from maestro_edge.values import UNITS, Budget, check_budget

    quantities: tuple[Quantity, ...] = ("p90_ms", "size_bytes", "memory_bytes", "macs", "params", "energy_mj")
    common = tuple(
        Budget(quantity=quantity, limit=UNITS[quantity][0] * check_budget(given, quantity))
        for quantity, given in zip(quantities, others, strict=True)
        if given is not None
    )
    if not ms and not common:
        fail("no budget: give --budget-ms, or another --budget-… of 'maestro-edge plan --help'")
    return [(Budget(quantity="ms", limit=limit), *common) for limit in budgets_ms(ms)] or [common]


def precisions_of(given: list[str] | None, default: Sequence[Precision] = ("fp32",)) -> Sequence[Precision]:
    from typing import get_args

    from maestro_edge.values import Precision

    known: dict[str, Precision] = {name: name for name in get_args(Precision)}
    unknown = [name for name in given or () if name not in known]
    if unknown:
        fail(f"no precision {unknown[0]!r}: choose {', '.join(known)}")
    return [known[name] for name in given] if given else default


def layout_of(given: str) -> Layout:
    known: dict[str, Layout] = {"nchw": "NCHW", "nhwc": "NHWC"}
    if given.lower() not in known:
        fail(f"no layout {given!r}: choose {' or '.join(known)}")
    return known[given.lower()]


def protocol_of(threads: int) -> Any:
    from maestro_edge.runtimes import MeasuringProtocol

    return MeasuringProtocol(threads=threads)
