"""Completes the runs of a comparison: results are kept, stopped runs resumed, failures turned into sentences."""

import multiprocessing
import traceback
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pointpeft.runs.config import FinetuneConfig
from pointpeft.runs.finetune import finetune

EXPECTED = (ValueError, OSError, ImportError)
"""Errors whose message is written for the user; any other is reported with its traceback."""


def result_path(run: FinetuneConfig) -> Path:
    """The file that a finished run leaves."""
    if run.output is None:
        raise ValueError("output must name the run's folder, got None")
    return run.output / "result.json"


def resumed(run: FinetuneConfig) -> FinetuneConfig:
    """The same run, continued from its folder if it was started before."""
    started = (result_path(run).parent / "config.json").exists()
    return replace(run, resume=run.output, output=None) if started else run


def failure_of(function: Callable[..., Any], *arguments: Any) -> str | None:
    """Calls a function and returns what went wrong, None for nothing."""
    try:
        function(*arguments)
    except EXPECTED as error:
        return str(error)
    except Exception:
        return traceback.format_exc()
    return None


def complete(run: FinetuneConfig) -> str | None:
    """Makes sure, in this process, that the run has its result; returns what went wrong, None for nothing."""
    return None if result_path(run).exists() else failure_of(finetune, resumed(run))


def complete_in_process(run: FinetuneConfig) -> str | None:
    """As `complete`, in a process of its own: its peak memory is its own, and a crash takes nothing with it."""
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


def _send_failure(run: FinetuneConfig, sender: Connection) -> None:
    sender.send(complete(run))
