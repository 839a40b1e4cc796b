"""Runs that are reproducible to the bit on CUDA, or an error that says why they cannot be."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def determinism(enabled: bool) -> Iterator[None]:
    """Within it PyTorch uses deterministic algorithms alone, if `enabled`.

    The CPU's always are. On CUDA this costs speed: sums over indices are sorted, and matrix products use one
    workspace, whose size must be set before the first of them.

    Raises:
        ValueError: Something in the run has no deterministic algorithm; says what.
    """
    if not enabled:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if "use_deterministic_algorithms" not in str(error):
            raise
        reason = str(error).split(", but you set")[0].rstrip(".")
        raise ValueError(f"deterministic cannot be kept here: {reason}; run without it") from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
