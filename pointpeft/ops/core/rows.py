"""The compiled passes over rows of channels that the fused operations are built of on the CPU."""

import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pointpeft.ops.core import library  # noqa: F401  loads the compiled operations


def packed(x: Tensor) -> Tensor:
    """`x` with its channels side by side; its rows may lie apart. [N, C]"""
    return x if x.stride(-1) == 1 or x.shape[-1] < 2 else x.contiguous()


CHUNK_BYTES = 8 << 20
"""Largest piece of an MLP's hidden layer that is computed at a time: it stays in the cache, at one address.

A limit in bytes gives short types more rows: their products are slow over few.
"""


def per_chunk(hidden: int, dtype: torch.dtype) -> int:
    """How many rows an MLP of so many hidden channels takes at a time, at most."""
    return max(1, CHUNK_BYTES // max(1, hidden * dtype.itemsize))


def chunks(n: int, most: int) -> list[tuple[int, int]]:
    """First row and row behind the last of each chunk, of nearly even sizes of at most `most` rows."""
    count = -(-n // most)
    return list(pairwise([n * i // count for i in range(count + 1)])) if count else []


_kept = threading.local()


def scratch(rows: int, width: int, dtype: torch.dtype, name: str) -> Tensor:
    """Memory without values for a chunk of something inside, the same at each call of a thread. [rows, width]

    Fresh memory of this size goes back to the system at each call, and is mapped page by page at the next.
    """
    needed = rows * width * dtype.itemsize
    if needed > CHUNK_BYTES:  # too much to hold for good
        return torch.empty(rows, width, dtype=dtype)
    if getattr(_kept, name, None) is None:
        with torch.inference_mode(False):  # else it could be written to in inference mode alone
            setattr(_kept, name, torch.empty(CHUNK_BYTES, dtype=torch.uint8))
    return getattr(_kept, name)[:needed].view(dtype).view(rows, width)


def _compiled(name: str) -> Callable[..., Any]:
    return lambda *args: getattr(torch.ops.pointpeft, name).default(*args)


forward = _compiled("_scale_shift_rows")
"""(x, gamma, beta, gelu, out): out = γ ⊙ x + β, or GELU of it."""

backward = _compiled("_scale_shift_rows_backward")
"""(grad, x, gamma, beta, dx) -> (d_gamma, d_beta), float32 or float64; with beta through GELU, without past it.

`dx` may be `grad` itself.
"""

norm = _compiled("_norm_rows")
"""(x, weight, bias, gate, eps) -> (LN(x), mean and 1 / deviation [2 N], gate · LN(x) [N] or empty)."""

add_norm = _compiled("_add_norm_rows")
"""(x, y, weight, bias, eps, sum, out): out = LN(x), or with y of the type of out, sum = x + y and out = LN(sum)."""


def norm_backward(
    grad: Tensor, x: Tensor, stats: Tensor, weight: Tensor, gate: Tensor | None, d_gate: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """dx, and sums over rows [C] of du ⊙ x̂, du and d_gate ⊙ x̂: x̂ is normalised x, du = grad + d_gate ⊗ gate."""
    dx, sums = torch.ops.pointpeft._norm_rows_backward.default(grad, x, stats, weight, gate, d_gate)
    return dx, [total.clone() for total in sums.view(3, -1)]


hidden = _compiled("_adapter_hidden")
"""(z, s, seed, probability) -> s ⊙ dropout(GELU(z)); s float32 or float64 [N], seed None where nothing drops."""

hidden_backward = _compiled("_adapter_hidden_backward")
"""(back, z, s, seed, probability) -> (dz, its sum over rows, back · dropout(GELU(z)) per row)."""

output = _compiled("_adapter_output")
"""(a, up_bias, s, clouds): a += s ⊗ up_bias; returns the mean over each cloud's rows of GELU(a), for clouds > 0."""

closing = _compiled("_adapter_closing")
"""(a, up_bias, s, z, gamma, beta, x, clouds, out): out = x + (γ ⊙ z + β) + (a + s ⊗ up_bias), x of the type of out or
None; returns the mean over each cloud's rows of GELU of the last bracket.
"""

gradient = _compiled("_adapter_gradient")
"""(grad, grad_prompt, a, up_bias, s) -> (sum of s ⊙ g, g · up_bias per row).

g is `grad`; with `grad_prompt` it has the prompt's share as well, at a + s ⊗ up_bias, and overwrites a.
"""

first_layer = _compiled("_patch_first_layer")
"""(points, weight, bias, out): out = relu(W p + b) of points [N, 3]."""

patch_max = _compiled("_patch_max")
"""(x, size, out): out [N / size, C] = the maximum over each `size` rows of x."""

patch_clamp = _compiled("_patch_clamp")
"""(x, size, shift): x = max(x, -shift) in place, shift [N / size, C] of each `size` rows."""


def attention(
    qkv: Tensor, gamma: Tensor | None, beta: Tensor | None, heads: int, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mixed values [B, T, C], in `out` where it is given, and log-sum-exp [B, heads, T], of γ ⊙ qkv + β [B, T, 3C]."""
    qkv = qkv if qkv.stride(-1) == 1 else qkv.contiguous()
    out = qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3) if out is None else out
    return out, torch.ops.pointpeft._attention.default(qkv, gamma, beta, heads, out)


def attention_backward(
    grad: Tensor, qkv: Tensor, gamma: Tensor | None, beta: Tensor | None, out: Tensor, lse: Tensor, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of qkv [B, T, 3C], and of γ and β [3C], float32 or float64, empty without them.

    `out` and `lse` are what `attention` gave.
    """
    qkv = qkv if qkv.stride(-1) == 1 else qkv.contiguous()
    dz = qkv.new_empty(qkv.shape)
    backward = torch.ops.pointpeft._attention_backward.default
    return dz, *backward(grad.contiguous(), qkv, gamma, beta, out.contiguous(), lse.contiguous(), heads, dz)
