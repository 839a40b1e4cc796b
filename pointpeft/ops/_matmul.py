"""Products with a frozen weight on the CPU: by AMX in float32, else by the faster of PyTorch's two matrix libraries."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pointpeft.ops import _library

# PyTorch gives float32 products to MKL, which leaves AVX-512 unused on AMD processors: on two cores of an EPYC it takes
# twice as long as oneDNN (benchmarks/bench_frozen_linear.py), which torch.compile's CPU code calls by this name. On
# one of Intel's (Granite Rapids) MKL takes 0.9 of oneDNN's time, and it is the faster one where there is AVX2 alone.
_ONEDNN = (
    torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and not _library.made_by_intel()
)
_LEAST = 1 << 20  # multiplications that are worth the longer way to another kernel than PyTorch's own
# Splitting the weight for AMX takes the time of about 200 rows, on two cores of a Granite Rapids: from here on it is
# the faster way for all but the narrowest weights, for 1000 rows and more by 1.4 to 1.6 (bench_frozen_linear.py).
_FEWEST_ROWS = 320


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    out: Tensor | None = None,
    buffer: Tensor | None = None,
) -> Tensor:
    """X Wᵀ + b on the CPU, outside autograd; differs from F.linear in roundings alone.

    AMX has no float32: there each factor is split into three bfloat16 parts (csrc/_linear.cpp), which is as exact.

    Args:
        x: [N, C]
        weight: [O, C]
        bias: [O]
        out: Where the result goes, its channels side by side. [N, O]
        buffer: Where it may go instead of into fresh memory, whose pages have to be mapped where it is large; oneDNN
            has no use for it. [N, O]

    Returns:
        [N, O]
    """
    large = x.dtype == torch.float32 and x.shape[0] * weight.numel() >= _LEAST
    if large and x.shape[0] >= _FEWEST_ROWS and _library.compiled():
        y = buffer if out is None else out
        y = x.new_empty(x.shape[0], weight.shape[0]) if y is None else y
        if torch.ops.pointpeft._linear.default(x, weight, bias, y):
            return y
    if _ONEDNN and large and x.is_contiguous():
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
