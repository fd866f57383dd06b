"""What every command of the line shares: where it prints, how it fails, its progress, the device it holds."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import typer
from typer.core import TyperGroup

from maestro_edge.cli.profiles import Step
from maestro_edge.errors import MaestroError

if TYPE_CHECKING:
    from rich.console import Console

    from maestro_edge.recipes.run import Progress

P = ParamSpec("P")
T = TypeVar("T")

_PIPELINE = (
    *("demo", "data", "order", "recipes", "train", "devices", "runners", "profile", "profiles"),
    *("plan", "fleet", "export", "verify", "deploy", "sweep", "bundle", "report"),
)
_CLAIM_S = 600.0
"""How long a device that another session measures on is waited for."""


class _Pipeline(TyperGroup):
    """Commands in the order of the work: typer puts those with commands of their own last."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=_PIPELINE.index)


app = typer.Typer(
    cls=_Pipeline,
    help="One ordered training, many devices: variants that keep a latency budget when measured.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@functools.cache
def console() -> Console:
    """Standard output under another number: converters' noise on 1 and 2 is cut off, this is not.

    Of several processes that torchrun started, the first prints.
    """
    from rich.console import Console

    if os.environ.get("RANK", "0") != "0":
        return Console(quiet=True)

    width = None if sys.stdout.isatty() else 120
    return Console(file=os.fdopen(os.dup(1), "w"), highlight=False, width=width)


def fail(message: str) -> None:
    typer.echo(f"maestro-edge: {' '.join(message.split())}", err=True)
    raise typer.Exit(1)


def guarded(function: Callable[P, T]) -> Callable[P, T]:
    """Expected failures and Ctrl-C become one line and exit code 1."""

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except MaestroError as error:
            fail(str(error))
        except OSError as error:
            fail(f"{error.filename or 'system'}: {error.strerror or error}")
        except KeyboardInterrupt:
            fail("interrupted; the same command goes on where it stopped")
        finally:
            if console.cache_info().currsize:
                console().file.close()
                console.cache_clear()
        raise AssertionError

    return guarded


def command(function: Callable[P, T]) -> Callable[P, T]:
    return app.command()(guarded(function))


def printing(function: Callable[P, Iterator[object]]) -> Callable[P, None]:
    """Print what a command yields, and what its steps return."""

    @functools.wraps(function)
    def printing(*args: P.args, **kwargs: P.kwargs) -> None:
        for shown in function(*args, **kwargs):
            if isinstance(shown, Step):
                with steps() as step:
                    shown = shown.work(step(shown.title))
            console().print(shown)

    return printing


@contextmanager
def steps() -> Iterator[Callable[[str], Progress]]:
    """A progress display; the yielded function begins a step and returns its callback (done, total, what)."""
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("[bold]{task.fields[title]:<20}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    noted: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        noted.append(signum)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        with Bars(*columns, console=console(), redirect_stdout=False, redirect_stderr=False) as bars:

            def begin(title: str) -> Progress:
                task = bars.add_task("", total=1, title=title)

                def show(done: int, total: int, what: str) -> None:
                    bars.update(task, completed=done, total=total, description=what)
                    if noted:
                        # A converter's C++ swallowed the exception that was raised inside of it.
                        raise KeyboardInterrupt

                return show

            yield begin
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def claimed(name: str, *, alone: bool = True) -> Iterator[Any]:
    """The device, held `alone` where something is measured; a browser's address is shown."""
    from contextlib import nullcontext

    from maestro_edge.devices import connect
    from maestro_edge.devices.claims import claim

    device = connect(name, announce=_announce)
    say = console().print
    try:
        shared = not alone or name.startswith("browser")  # a page takes one session as it is
        with nullcontext() if shared else claim(device, wait_s=_CLAIM_S, waiting=say):
            yield device
    finally:
        device.close()


def _announce(url: str, qr_code: str) -> None:
    console().print(f"open this page in the browser of the device that is to be measured:\n{url}")
    console().print(qr_code, soft_wrap=True)
