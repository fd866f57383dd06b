"""Converters and runtimes print from C++ and Python alike; this keeps it away from the user's terminal."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO

__all__ = ["silence"]


_ONE_AT_A_TIME = threading.RLock()
"""Descriptors belong to the process: of two threads, one waits."""


@contextmanager
def silence() -> Iterator[None]:
    """Send file descriptors 1 and 2 to a temporary file and ignore warnings while the block runs.

    Descriptors, not `sys.stdout`: most of the noise comes from C++. The reason of a failure is in the
    exception that is raised, so what was printed is dropped.
    """
    with _ONE_AT_A_TIME:
        yield from _redirected()


def _redirected() -> Iterator[None]:
    sys.stdout.flush()
    sys.stderr.flush()
    saved, deaf = (os.dup(1), os.dup(2)), logging.NullHandler()
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
        try:
            # logging.warning() of a library would set up the user's logging, on a stream that ends with the block.
            logging.root.addHandler(deaf)
            # Where sys.stderr is not descriptor 2, as in a notebook, progress bars need this too.
            with redirect_stdout(StringIO()), redirect_stderr(StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.root.removeHandler(deaf)
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in enumerate(saved, start=1):
                os.dup2(copy, number)
                os.close(copy)
