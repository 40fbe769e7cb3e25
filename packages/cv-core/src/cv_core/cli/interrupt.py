"""Ctrl-C during a run: stop at once, leave no process behind, keep what is finished."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

MESSAGE = "stopped; the same command goes on from here"


@contextmanager
def stoppable() -> Iterator[None]:
    """Let Ctrl-C end the process and its workers with exit code 130, inside the block.

    Python's own way, an exception wherever the main thread happens to be, can get lost in the
    libraries that run trials in parallel. Nothing has to be cleaned up: every file is written
    whole or not at all.
    """
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a handler's signature
    import psutil

    for worker in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            worker.kill()
    cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # the progress bars hide it
    os.write(2, f"{cursor}cvlab: {MESSAGE}\n".encode())
    os._exit(130)
