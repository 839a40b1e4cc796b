"""Triton kernels beside the same equations in PyTorch, eager and under torch.compile, at the published size.

python -m benchmarks.gpu.kernels --device cuda --output kernels.json --seconds 60
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import timing
from benchmarks.gpu import files
from pointpeft import ops

BATCH, TOKENS, C, R = 32, 129, 384, 64
TINY = {"batch": 2, "tokens": 5, "c": 16, "r": 4}
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 6e-2}  # of the largest value: the sums of a step are long


class Kernel(NamedTuple):
    """An operation, its reference, inputs, and what it moves and multiplies at least, forward alone."""

    name: str
    ours: Callable[..., Any]
    reference: Callable[..., Any]
    inputs: list[Tensor]
    flops: float


def kernels(device: str, dtype: torch.dtype, tiny: bool) -> list[Kernel]:
    """The operations that are written in Triton, those of DAPT first."""
    size = TINY if tiny else {"batch": BATCH, "tokens": TOKENS, "c": C, "r": R}
    b, t, c, r = size.values()
    generator = torch.Generator().manual_seed(0)

    def draw(*shapes: tuple[int, ...]) -> list[Tensor]:
        return [(torch.randn(s, generator=generator) / s[-1] ** 0.5).to(device, dtype) for s in shapes]

    x = (b, t, c)
    widths = (8, 8, 16, c) if tiny else (128, 256, 512, c)
    h1, h2, h3, _ = widths
    embed = [(h1, 3), (h1,), (h2, h1), (h2,), (h3, 2 * h2), (h3,), (c, h3), (c,)]
    points = b * (t - 1) * 32

    def patch(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda patches, *weights: function(patches, ops.PatchEmbedWeights(*weights))

    def prompted(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda x, *weights: function(x, ops.AdapterWeights(*weights), with_prompt=True)

    return [
        Kernel(
            "adapter",
            prompted(ops.adapter),
            prompted(ops.adapter_reference),
            draw(x, (c,), (c,), (1, c), (1,), (r, c), (r,), (c, r), (c,)),
            4.0 * b * t * c * r,
        ),
        Kernel(
            "patch_embed",
            patch(ops.patch_embed),
            patch(ops.patch_embed_reference),
            draw((b, t - 1, 32, 3), *embed),
            2.0 * points * (3 * h1 + h1 * h2 + h1 * h3 + h3 * c),
        ),
        Kernel("scale_shift", ops.scale_shift, ops.scale_shift_reference, draw(x, (c,), (c,)), 0),
    ]


def flat(result: Any) -> list[Tensor]:
    """The tensors of a result."""
    return [result] if isinstance(result, Tensor) else [r for r in result if isinstance(r, Tensor)]


def step_of(function: Callable[..., Any], inputs: list[Tensor], train: bool) -> Callable[..., list[Tensor]]:
    """A forward pass, or one with the gradients of all inputs; the first input is its argument."""

    def run(x: Tensor) -> list[Tensor]:
        given = [x, *inputs[1:]]
        results = flat(function(*given))
        if not train:
            return results
        return [*results, *torch.autograd.grad([r.sum() for r in results], given)]

    return run


def off(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference, relative to the largest value of its tensor."""
    return max(
        float((f.detach().float() - e.detach().float()).abs().max() / e.detach().float().abs().max().clamp(min=1e-6))
        for f, e in zip(found, expected, strict=True)
    )


def time_call(run: Callable[..., Any], x: Tensor, device: str) -> dict[str, Any]:
    """As the benchmarks time, with inputs that take turns."""
    if device == "cuda":
        return timing.gpu_facts(run, (x,))
    return {"eager_seconds": timing.clock_seconds(lambda: run(x), repeats=3)}


def measure(kernel: Kernel, train: bool, device: str, tiny: bool) -> dict[str, Any]:
    """Times of ours, of PyTorch and of torch.compile; a contender that fails or is wrong says so in its place."""
    inputs = [t.requires_grad_(train) for t in kernel.inputs]
    dtype = inputs[0].dtype
    exact = [t.detach().float().requires_grad_(train) for t in inputs]
    expected = step_of(kernel.reference, exact, train)(exact[0])
    compiled = torch.compile(kernel.reference, backend="eager" if tiny else "inductor", dynamic=False)
    passes = 3 if train else 1
    results = step_of(kernel.reference, inputs, train)(inputs[0])
    # What PyTorch loses to rounding in a short type is nobody's fault: twice as much is allowed.
    allowed = max(TOLERANCE[dtype], 2 * off(results, expected))
    row: dict[str, Any] = {
        "name": f"{kernel.name} {'step' if train else 'forward'} {str(dtype).removeprefix('torch.')}",
        "bytes": sum(t.nbytes for t in [*inputs, *results]),
        "flops": passes * kernel.flops,
        "dtype": str(dtype),
        "contenders": {},
    }
    for name, function in (("pointpeft", kernel.ours), ("eager", kernel.reference), ("torch.compile", compiled)):
        row["contenders"][name] = contend(step_of(function, inputs, train), inputs[0], expected, allowed, device)
    return row


def contend(
    run: Callable[..., list[Tensor]], x: Tensor, expected: list[Tensor], allowed: float, device: str
) -> dict[str, Any]:
    """The error and the times of a contender, or why it has none."""
    try:
        error = off(run(x), expected)
        if not error <= allowed:
            return {"error": error, "failed": f"off by {error:.2g} of the largest value, more than {allowed:.2g}"}
        return {"error": error, **time_call(run, x, device)}
    except Exception as failure:
        return {"failed": timing.refusal(failure)}


def main() -> None:
    """The command; ends with 1 where one of our kernels failed or was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=120.0, help="begin no row after so long")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    until = time.monotonic() + 0.8 * given.seconds
    rows: list[dict[str, Any]] = []
    for dtype in (torch.bfloat16, torch.float32)[: 1 if given.tiny else 2]:
        for train in (False, True):
            for kernel in kernels(given.device, dtype, given.tiny):
                if time.monotonic() > until or (train and kernel.name == "patch_embed"):
                    continue  # the tokenizer is frozen: it has no backward
                rows.append(measure(kernel, train, given.device, given.tiny))
                files.write(given.output, {"rows": rows})
    failed = [row["name"] for row in rows if "failed" in row["contenders"]["pointpeft"]]
    raise SystemExit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
