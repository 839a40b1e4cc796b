"""Fuzzes what answers on CUDA beside the CUDA kernels: `python -m tests.hardening.fuzz.cuda_path --cases 2000`.

The Triton kernels, in Triton's interpreter, and the compositions of PyTorch's operations that CUDA tensors get take
the place of the CPU's answers. Cases and verdict are those of `tests.hardening.fuzz.ops`, with smaller tensors:
results and gradients are held to the reference in float64, relative to the largest value within 2e-5 in float32, 4e-2
in bfloat16 and 6e-3 in float16. float64 is left out: CUDA tensors of that type get the reference.
"""

import os
import sys
from typing import Any

import torch
from torch import Tensor

from pointpeft.ops.frozen import _adapter_triton
from tests.hardening.fuzz import ops
from tests.hardening.fuzz.draw import Draw
from tests.hardening.fuzz.driver import main

REACH = 17  # of most sizes: the interpreter needs milliseconds for a block

NAMES = (
    "adapter",
    "frozen_linear",
    "frozen_mlp",
    "patch_embed",
    "scale_shift",
)
"""Operations that are written in Python; attention is not among them: its CUDA answer has no CPU counterpart."""


MULTIPLY = ("adapter", "frozen_mlp", "patch_embed")
"""Those whose kernels multiply matrices."""


def module(name: str) -> Any:
    return sys.modules[f"pointpeft.ops.frozen.{name}"]


ANSWERS = {
    "adapted_mlp": module("_adapted_mlp")._composed,
    "adapter": _adapter_triton.launch,
    "adapter_backward": _adapter_triton.launch_backward,
    "frozen_linear": module("frozen_linear")._cuda,
    "frozen_mlp": module("_mlp")._cuda,
    "frozen_mlp_backward": module("_mlp")._cuda_backward,
    "layer_norm": module("layer_norm")._composed,
    "patch_embed": module("patch_embed")._launch,
    "scale_shift": module("scale_shift")._launch,
    "scale_shift_backward": module("scale_shift")._launch_backward,
}
"""What answers on CUDA, by the name of the registered operation."""


def answer_as_cuda() -> torch.library.Library:
    """Registers the `ANSWERS` for CPU tensors too, as long as the result lives."""
    library = torch.library.Library("pointpeft", "IMPL")
    for name, function in ANSWERS.items():
        library.impl(name, function, "CPU", allow_override=True)
    return library


def single(at: str, tensor: Tensor) -> Tensor:
    """CUDA tensors in float64 get the reference."""
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def multiplied(at: str, tensor: Tensor) -> Tensor:
    """Triton's interpreter multiplies the bits of bfloat16 matrices, not their values."""
    return tensor.half() if tensor.dtype == torch.bfloat16 else single(at, tensor)


def one(seed: int, number: int) -> tuple[str, str]:
    """Runs a case; gives the operation and how it ended."""
    draw = Draw("cuda path", seed, number)
    draw.reach = REACH
    name = draw.choice(NAMES)
    return ops.run(draw, name, multiplied if name in MULTIPLY else single)


if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, at the first launch
    library = answer_as_cuda()
    main("tests.hardening.fuzz.cuda_path", (__doc__ or "").splitlines()[0], one, 6 << 30, 120.0)
