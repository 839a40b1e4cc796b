"""What benchmarks of fused operations share: a forward pass and a step on the tokens of one block."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.conftest import DEVICES
from pointpeft import ops

BATCH, TOKENS, C, H = 16, 129, 384, 1536  # a block of the published size


def bench(
    operation: str,
    sizes: dict[str, tuple[int, ...]],
    trained: tuple[str, ...],
    *,
    label: str = "",
    call: Callable[..., Tensor] = lambda function, **arguments: function(**arguments),
    memory_bound: bool = False,
    **options: Any,
) -> Callable[..., None]:
    """A benchmark of `pointpeft.ops.OPERATION` beside its reference.

    Args:
        operation: Its name.
        sizes: Of its tensors by argument, the tokens first.
        trained: Which of them get a gradient.
        label: Names the rows, the operation's name where it is empty.
        call: Calls the operation or its reference with all arguments by name, where it takes them otherwise.
        memory_bound: On CUDA copies of the tokens take turns, so that they do not come from the L2 cache.
        options: Further arguments.
    """
    reference = getattr(ops, f"{operation}_reference")
    candidates = {"pointpeft": getattr(ops, operation), "reference": reference}

    def run(function: Callable[..., Tensor], inputs: list[Tensor]) -> tuple[Tensor, ...]:
        y = call(function, **dict(zip(sizes, inputs, strict=True)), **options)
        learning = [t for t in inputs if t.requires_grad]
        return (y, *torch.autograd.grad(y.sum(), learning)) if learning else (y,)

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("train", [False, True], ids=["forward", "step"])
    @pytest.mark.parametrize("name", candidates)
    def row(compare, name, train, device):
        generator = torch.Generator().manual_seed(0)
        inputs = [(torch.randn(s, generator=generator) / s[-1] ** 0.5).to(device) for s in sizes.values()]
        for argument, tensor in zip(sizes, inputs, strict=True):
            tensor.requires_grad_(train and argument in trained)
        expected = run(reference, inputs)
        compare(
            f"{label or operation} {'step' if train else 'forward'} {BATCH}x{TOKENS}",
            lambda *tokens: run(candidates[name], [*tokens, *inputs[len(tokens) :]]),
            lambda got: all(torch.allclose(g, e, rtol=1e-3, atol=1e-3) for g, e in zip(got, expected, strict=True)),
            device=device,
            rotate=inputs[:1] if memory_bound else (),
            bytes=(5 if train else 2) * inputs[0].nbytes,
        )

    return row
