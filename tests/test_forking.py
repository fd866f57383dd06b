"""Exports in forked processes: each is done once, elsewhere but the first ones, and a failure is the caller's."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from maestro_edge.errors import ExportError
from maestro_edge.runtimes import load
from maestro_edge.runtimes.forking import side_by_side


def note(folder: Path, name: str) -> None:
    with (folder / name).open("a") as file:
        file.write(f"{os.getpid()}\n")


def noted(folder: Path) -> dict[str, list[int]]:
    return {path.name: [int(pid) for pid in path.read_text().split()] for path in folder.iterdir()}


@pytest.mark.parametrize(("forks_after", "here"), [("os", 0), ("imported.by.one", 3), (None, 7)])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_each_task_is_done_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, forks_after: str | None, here: int
) -> None:
    """By a process of its own, but for the first ones until one has to import what all need."""
    finished: list[int] = []

    def do(index: int) -> None:
        note(tmp_path, str(index))
        if index == 2:
            monkeypatch.setitem(sys.modules, "imported.by.one", os)

    tasks = [partial(do, i) for i in range(count)]
    side_by_side(tasks, lambda: finished.append(1), forks_after=forks_after)

    found = noted(tmp_path)
    assert len(finished) == len(found) == count
    assert all(len(pids) == 1 for pids in found.values())
    pids = [found[str(i)][0] for i in range(count)]
    assert [pid == os.getpid() for pid in pids] == [index < here for index in range(count)]
    assert len(set(pids[here:])) == len(pids[here:])


def test_executorch_writes_the_same_file_in_a_process(tmp_path: Path) -> None:
    """Its exporter is what all this is for."""
    model, inputs = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), (torch.ones(1, 3, 8, 8),)
    runtime = load("executorch")
    paths = [tmp_path / "here.pte", tmp_path / "there.pte"]
    tasks = [partial(runtime.export, model, inputs, path, "int8-static", calibration=inputs) for path in paths]

    side_by_side(tasks, lambda: None, forks_after=runtime.forks_after)

    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert runtime.forks_after in sys.modules


def test_what_fails_in_a_process_is_raised_here(tmp_path: Path) -> None:
    def fail() -> None:
        raise ExportError("no such operator")

    with pytest.raises(ExportError, match="no such operator"):
        side_by_side([partial(note, tmp_path, "first"), fail], lambda: None, forks_after="os")


def test_what_was_killed_is_done_here(tmp_path: Path) -> None:
    """As the kernel kills one that takes too much memory."""
    here = os.getpid()

    def greedy() -> None:
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        note(tmp_path, "greedy")

    side_by_side([partial(note, tmp_path, "first"), greedy], lambda: None, forks_after="os")

    assert noted(tmp_path)["greedy"] == [here]


def test_an_interrupt_leaves_no_process(tmp_path: Path) -> None:
    """Ctrl-C while others are at work: they end with it, not when they are done."""

    def stop() -> None:
        if noted(tmp_path).get("second"):
            raise KeyboardInterrupt

    def slow() -> None:
        note(tmp_path, "slow")
        time.sleep(60)

    begun = time.monotonic()
    tasks: list[Callable[[], None]] = [partial(note, tmp_path, "first"), slow, partial(note, tmp_path, "second")]
    if len(os.sched_getaffinity(0)) < 2:
        tasks.remove(slow)

    with pytest.raises(KeyboardInterrupt):
        side_by_side(tasks, stop, forks_after="os")

    assert time.monotonic() - begun < 30
    for (pid,) in noted(tmp_path).values():
        assert pid == os.getpid() or not Path(f"/proc/{pid}").exists()
