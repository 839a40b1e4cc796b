"""Handles Ctrl-C within a second, even while a long operation blocks the main thread."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PATIENCE = 0.7  # seconds for the main thread to answer by itself
_owner: int | None = None  # the process that watches: a forked one does not


@contextmanager
def answered(handler: Any, last_answer: Callable[[], float], end: Callable[[], Any]) -> Iterator[None]:
    """Within it a thread sees Ctrl-C at once, and calls `end` where the main thread has not answered in time.

    Python runs a signal's handler between two of its own instructions, hence not before an operation of C++ returns.
    The system's part of the signal, which writes a byte to a pipe, runs at once, and operations let other threads run.

    Args:
        handler: The one that is installed; where another takes its place for a while, that one is in charge.
        last_answer: When the handler last ran, by `time.monotonic`.
        end: Ends the process.
    """
    global _owner
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before, _owner = signal.set_wakeup_fd(writer, warn_on_full_buffer=False), os.getpid()
    finished = threading.Event()

    def watch() -> None:
        while numbers := os.read(reader, 64):
            if finished.is_set():
                break
            if signal.SIGINT not in numbers or signal.getsignal(signal.SIGINT) is not handler:
                continue
            arrived = time.monotonic()
            if finished.wait(PATIENCE) or signal.getsignal(signal.SIGINT) is not handler:
                continue
            if last_answer() < arrived - 1:  # it may have run before this thread did
                end()

    watcher = threading.Thread(target=watch, name="pointpeft interrupts", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        finished.set()
        signal.set_wakeup_fd(before, warn_on_full_buffer=False)
        os.write(writer, b"\0")
        watcher.join()
        # Not before: without a reader the write above is a broken pipe, which a command takes for its own.
        os.close(reader)
        os.close(writer)
        _owner = None


def _in_child() -> None:
    """A forked process shares the pipe: what interrupts it alone is not for the parent."""
    if _owner is not None:
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_in_child)
