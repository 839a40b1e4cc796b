"""Completes the runs of a comparison: keeps results, resumes stopped runs, and turns failures into messages."""

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from pointpeft.runs.comparison.plan import PlannedRun
from pointpeft.runs.finetune import finetune

EXPECTED = (ValueError, OSError, ImportError)
"""Errors whose message is written for the user; any other is reported with its traceback."""


def failure_of(function: Callable[..., Any], *arguments: Any) -> str | None:
    """Calls a function and returns its error as a message, or None."""
    try:
        function(*arguments)
    except EXPECTED as error:
        return str(error)
    except Exception:
        return traceback.format_exc()
    return None


def complete(run: PlannedRun) -> str | None:
    """Completes a run in this process; returns the error as a message, or None."""
    return None if run.result.exists() else failure_of(finetune, run.resumable())


def complete_in_process(run: PlannedRun) -> str | None:
    """As `complete`, in a new process, so that peak memory is measured for this run and a crash stays isolated."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_failure, args=(run, sender))
    process.start()
    sender.close()
    try:
        failure = receiver.recv()
    except EOFError:
        process.join()
        failure = f"the process ended with code {process.exitcode}"
    process.join()
    return failure


def _send_failure(run: PlannedRun, sender: Connection) -> None:
    sender.send(complete(run))
