"""Products with a frozen weight on the CPU: by AMX in float32, else by the faster of PyTorch's two matrix libraries."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pointpeft.ops.core import library
from pointpeft.ops.core import rows as _rows

# PyTorch gives float32 products to MKL, which leaves AVX-512 unused on AMD processors: on two cores of an EPYC it takes
# twice as long as oneDNN (benchmarks/frozen/bench_frozen_linear.py), which torch.compile's CPU code calls by this name.
# On one of Intel's (Granite Rapids) MKL takes 0.9 of oneDNN's time, and it is the faster one where there is AVX2 alone.
_ONEDNN = (
    torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and not library.made_by_intel()
)
_LEAST = 1 << 20  # multiplications that are worth the longer way to another kernel than PyTorch's own
# Splitting the weight for AMX pays from here on, on two cores of a Granite Rapids: 512 rows are 1.1 times as fast as
# by PyTorch forward and 0.95 times in a step, 1032 and more 1.3 to 1.7 times (bench_frozen_linear.py, RESULTS.md).
_FEWEST_ROWS = 512
_BLOCK = 32  # rows and channels of a weight that its parts are padded to, as in csrc/frozen/_linear.cpp


class Weight(NamedTuple):
    """A weight of several products. [O, C]"""

    whole: Tensor
    parts: Tensor | None  # for AMX


def prepared(weight: Tensor, rows: int, name: str) -> Weight:
    """`weight` for products with `rows` rows each: what AMX needs of it is made once for all of them.

    It lies in memory of that name, which the next weight of the thread by that name takes.
    """
    if not _is_large(rows, weight):
        return Weight(weight, None)
    blocks = [-(-size // _BLOCK) for size in weight.shape]
    terms = _rows.scratch(blocks[0] * blocks[1], 3 * _BLOCK**2, torch.bfloat16, f"parts_{name}").view(-1)
    return Weight(weight, terms if torch.ops.pointpeft._split_weight.default(weight, terms) else None)


def _is_large(rows: int, weight: Tensor) -> bool:
    """Whether a product is worth asking AMX."""
    worth = rows >= _FEWEST_ROWS and rows * weight.numel() >= _LEAST
    return worth and weight.dtype == torch.float32 and library.compiled()


def linear(
    x: Tensor,
    weight: Tensor | Weight,
    bias: Tensor | None = None,
    *,
    out: Tensor | None = None,
    buffer: Tensor | None = None,
) -> Tensor:
    """X Wᵀ + b on the CPU, outside autograd; differs from F.linear in roundings alone.

    AMX has no float32: there each factor is split into three bfloat16 parts (csrc/frozen/_linear.cpp), which is as
    exact.

    Args:
        x: [N, C]
        weight: Itself, or what `prepared` made of it. [O, C]
        bias: [O]
        out: Where the result goes, its channels side by side. [N, O]
        buffer: Where it may go instead of into fresh memory, whose pages have to be mapped where it is large; oneDNN
            has no use for it. [N, O]

    Returns:
        [N, O]
    """
    weight, terms = weight if isinstance(weight, Weight) else (weight, None)
    if _is_large(x.shape[0], weight):
        y = buffer if out is None else out
        y = x.new_empty(x.shape[0], weight.shape[0]) if y is None else y
        if torch.ops.pointpeft._linear.default(x, weight, terms, bias, None, None, y):
            return y
    if _ONEDNN and x.dtype == torch.float32 and x.shape[0] * weight.numel() >= _LEAST and x.is_contiguous():
        # oneDNN would take a strided bias for a whole one, and a strided weight element by element.
        if not (weight.is_contiguous() or weight.t().is_contiguous()):
            weight = weight.contiguous()
        bias = None if bias is None else bias.contiguous()
        y = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
        return y if out is None else out.copy_(y)
    out = buffer if out is None else out
    if out is None:
        return F.linear(x, weight, bias)
    if bias is None:
        return torch.mm(x, weight.t(), out=out)
    return torch.addmm(bias, x, weight.t(), out=out)


def linear_gelu(x: Tensor, weight: Tensor | Weight, gamma: Tensor, beta: Tensor, *, buffer: Tensor) -> Tensor:
    """GELU(γ ⊙ X Wᵀ + β) on the CPU, outside autograd; on AMX while the product is in the cache.

    Args:
        x: [N, C]
        weight: [O, C]
        gamma: [O]
        beta: [O]
        buffer: As in `linear`. [N, O]

    Returns:
        [N, O]
    """
    whole, terms = weight if isinstance(weight, Weight) else (weight, None)
    if _is_large(x.shape[0], whole) and torch.ops.pointpeft._linear.default(x, whole, terms, None, gamma, beta, buffer):
        return buffer
    y = linear(x, whole, buffer=buffer)
    _rows.forward(y, gamma, beta, True, y)
    return y
