"""Progress bars for terminals, lines for logs."""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from tqdm import tqdm


def make_bar(inputs: Iterable[Any] | None = None, title: str | None = None, **options: Any) -> "tqdm[Any]":
    """A progress bar on stderr, where that is a terminal: a log would get a line for every refresh.

    Args:
        inputs: What to go through, if anything.
        title: Of the bar, or None for none.
        options: Further arguments of `tqdm`.
    """
    return tqdm(inputs, desc=title, disable=True if title is None else None, **options)


def log_epoch(title: str, row: Mapping[str, float], epochs: int) -> None:
    """Prints one line for an epoch where stderr is no terminal, which has no progress bar.

    Args:
        title: What is trained.
        row: The epoch's row of the log.
        epochs: How many there are at most.
    """
    if sys.stderr.isatty():
        return
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name not in ("epoch", "seconds"))
    print(f"{title}: epoch {row['epoch']} of {epochs}: {numbers}", file=sys.stderr, flush=True)
