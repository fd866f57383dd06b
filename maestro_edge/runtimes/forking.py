"""side_by_side(): slow exports, a forked process each, on as many cores as there are."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from typing import Any

import torch

__all__ = ["side_by_side"]

Task = Callable[[], object]

_MOST = 4
"""Processes at a time: each may take a gigabyte."""


def side_by_side(tasks: Sequence[Task], done: Task, *, forks_after: str | None) -> None:
    """Run the tasks, whose only effects are files, and call `done` after each.

    Each in a process that is forked from this one, so that nothing is pickled, where fork() is safe; the first
    ones here until the module `forks_after`, which all need, is imported. None runs all of them here. One whose
    process fails, or is ended for its memory, is done again here, where its error is raised.
    """
    waiting, forks = list(tasks), sys.platform == "linux"
    while waiting and not (forks and forks_after in sys.modules):
        waiting.pop(0)()
        done()
    _in_processes(waiting, done)


def _in_processes(tasks: Sequence[Task], done: Task) -> None:
    context, waiting = multiprocessing.get_context("fork"), list(reversed(tasks))
    running: dict[int, tuple[Any, Task]] = {}
    workers = min(_MOST, len(os.sched_getaffinity(0)))
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                task = waiting.pop()
                process = context.Process(target=_alone, args=(task,))
                with warnings.catch_warnings():
                    # of JAX, which LiteRT's exporter brings: its threads are not used there
                    warnings.filterwarnings("ignore", message=r".*fork\(\)")
                    process.start()
                running[process.sentinel] = process, task
            for sentinel in wait(list(running)):
                assert isinstance(sentinel, int)
                process, task = running.pop(sentinel)
                process.join()
                if process.exitcode:
                    task()
                done()
    finally:
        for process, _ in running.values():
            process.terminate()
            process.join()


def _alone(task: Task) -> None:
    """In the forked process, which ends here: what is to be done at an exit is its parent's."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)  # the parent's other threads are not in here; to wait for them would be for ever
    code = 1
    try:
        task()
        code = 0
    finally:
        os._exit(code)
