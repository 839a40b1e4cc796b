"""Errors of a step, with the options that avoid them: out of memory, and BatchNorm over a single cloud."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_OUT_OF_MEMORY = ("DefaultCPUAllocator", "can't allocate memory")  # PyTorch's words on the CPU
_NO_STATISTICS = "Expected more than 1 value per channel"  # PyTorch's words


@contextmanager
def explain_out_of_memory(what: str, batch_size: int, remedies: str) -> Iterator[None]:
    """Turns an out-of-memory error into one that names the run, its batch size and cheaper options.

    Args:
        what: The backbone and the method.
        batch_size: Clouds of a step.
        remedies: Options that take less memory, beside a smaller batch.

    Raises:
        MemoryError: The memory of the device or of the machine ended.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        short = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
            mark in str(error) for mark in _OUT_OF_MEMORY
        )
        if not short:
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        smaller = "" if batch_size == 1 else f" --batch-size {batch_size // 2} takes about half;"
        raise MemoryError(
            f"out of memory with batch size {batch_size} and {what}:{smaller} {remedies}. PyTorch says: {reason}"
        ) from error


@contextmanager
def explain_single_cloud(batch_size: int) -> Iterator[None]:
    """Turns BatchNorm's refusal of a single cloud into an error that names `batch_size`.

    Raises:
        ValueError: A step of training had one cloud for a BatchNorm over clouds.
    """
    try:
        yield
    except ValueError as error:
        if _NO_STATISTICS not in str(error):
            raise
        raise ValueError(
            "each process needs at least 2 clouds in every step, since a BatchNorm of the model measures the clouds of "
            f"a step together: give a larger --batch-size than {batch_size}, or more training clouds"
        ) from error
