"""Compares a device with the CPU: `python -m tests.hardening.fuzz.on_device --cases 2000 --workers 8`.

Cases and verdict are those of `tests.hardening.fuzz.ops`, where the device takes the role of the kernels and the CPU's
kernels that of the reference: indices and copied values must be equal to the bit, floating values
and gradients within rounding. POINTPEFT_FUZZ_DEVICE names the device, cuda without it. On the CPU, where there is no
GPU, the reference takes the place of the CPU's kernels, so that something is compared.
"""

import os
import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.hardening.fuzz import ops
from tests.hardening.fuzz.case import CASES, Case, replaced
from tests.hardening.fuzz.draw import Draw
from tests.hardening.fuzz.driver import main

DEVICE = os.environ.get("POINTPEFT_FUZZ_DEVICE", "cuda")
ADDRESSES = 1 << 46  # bytes of addresses a worker may take: CUDA reserves far more than it fills


def moved(name: str, tensor: Tensor) -> Tensor:
    """The tensor on the device, with its strides, its offset into a cache line, and its need of a gradient."""
    if not tensor.numel() or DEVICE == "cpu":
        return tensor.detach().to(DEVICE).requires_grad_(tensor.requires_grad)
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    offset = tensor.storage_offset() % 16
    base = torch.zeros(offset + last + 1, dtype=tensor.dtype, device=DEVICE)
    window = base.as_strided(tensor.shape, tensor.stride(), offset)
    if 0 in tensor.stride():  # spread over a dimension: each place is written once
        small = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in tensor.stride())
        window[small].copy_(tensor.detach()[small])
    else:
        window.copy_(tensor.detach())
    return window.requires_grad_(tensor.requires_grad)


def back(answer: Any) -> Any:
    """An answer of the device with its tensors on the CPU."""
    if isinstance(answer, ValueError):
        return answer
    results, gradients, towards = answer
    return [r.cpu() for r in results], [g.cpu() for g in gradients], towards


def on_device(name: str, case: Case, draw: Draw, towards: list[Tensor] | None) -> Any:
    """The device's answer, on the CPU."""
    arguments = replaced(case.arguments, moved)
    found = ops.answer(name, arguments, "auto", draw, towards and [t.to(DEVICE) for t in towards])
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return back(found)


def one(seed: int, number: int) -> tuple[str, str]:
    """Runs a case; gives the operation and how it ended."""
    draw = Draw("ops", seed, number)
    name = draw.choice(sorted(CASES))
    case = CASES[name](draw)
    case.arguments = replaced(
        case.arguments, lambda at, t: t.detach().requires_grad_() if at in case.learns and draw.happens(0.4) else t
    )
    try:
        return name, verdict(draw, name, case)
    except Exception as error:
        text = f"{ops.describe(case.arguments)}\n{type(error).__name__}: {error}"
        if isinstance(error, torch.AcceleratorError):  # nothing answers in this process any more
            print(f"case {number} of {name}: {text}", flush=True)
            os._exit(1)
        raise ops.Failure(name, text) from error


def verdict(draw: Draw, name: str, case: Case) -> str:
    """Asks both devices and compares."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is composed on a device says so once
        expected = ops.answer(name, case.arguments, "reference" if DEVICE == "cpu" else "auto", draw, None)
        towards = None if isinstance(expected, ValueError) else expected[2]
        found = on_device(name, case, draw, towards)
    if isinstance(found, ValueError) or isinstance(expected, ValueError):
        if type(found) is not type(expected):
            raise AssertionError(f"{DEVICE}: {found!r}, CPU: {expected!r}")
        return "refused"
    ops.compare(case, found, expected, partial(ops.judged, name, case, found[0], towards))
    return "equal"


if __name__ == "__main__":
    os.environ["POINTPEFT_CHECK"] = "1"  # the CPU always refuses coordinates that are not finite
    main("tests.hardening.fuzz.on_device", (__doc__ or "").splitlines()[0], one, ADDRESSES, 60.0)
