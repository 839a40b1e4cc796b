"""Training steps through torch.compile, on CUDA replayed as CUDA graphs."""

from typing import Any

import torch
from torch import nn

BACKEND = "inductor"


def check_compiled(cuda_graph: bool, device: torch.device) -> None:
    """Checks the requirements of compilation and of CUDA graphs.

    Raises:
        ValueError: CUDA graphs on a device other than CUDA, or without Triton, which generates their kernels.
    """
    if not cuda_graph:
        return
    if device.type != "cuda":
        raise ValueError(f"cuda_graph needs a CUDA device, got {device.type}; compile is what works there")
    from pointpeft.ops.core import triton_launch

    if not triton_launch.available():
        raise ValueError("cuda_graph needs Triton, which is not installed: pip install triton")


def compiled_step(model: nn.Module, cuda_graph: bool) -> Any:
    """`model` for training steps, compiled when it is first called; parameters and modes are those of `model`.

    Each size of a batch is compiled by itself, so that the last one of an epoch, which may be smaller, is another graph
    and not a slower general one. With `cuda_graph` forward and backward are recorded and replayed by torch's own
    machinery, which gives a recording static inputs, its memory and the generator's state, so that dropout draws anew.

    Args:
        model: Changed in no way; evaluation may go on calling it uncompiled.
        cuda_graph: Replay CUDA graphs: less time between kernels, more memory.
    """
    torch.compiler.reset()  # a second model of one process would count as recompilations of the first
    mode = "reduce-overhead" if cuda_graph else None
    return torch.compile(model, backend=BACKEND, mode=mode, dynamic=False)
