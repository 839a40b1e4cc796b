"""The compiled element-wise passes over rows of channels that the fused operations are built of on the CPU."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pointpeft.ops import _library  # noqa: F401  loads the compiled operations


def packed(x: Tensor) -> Tensor:
    """`x` with its channels side by side; its rows may lie apart. [N, C]"""
    return x if x.stride(-1) == 1 or x.shape[-1] < 2 else x.contiguous()


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


def norm_backward(
    grad: Tensor, x: Tensor, stats: Tensor, weight: Tensor, gate: Tensor | None, d_gate: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """dx, and sums over rows [C] of du ⊙ x̂, du and d_gate ⊙ x̂: x̂ is normalised x, du = grad + d_gate ⊗ gate."""
    dx, sums = torch.ops.pointpeft._norm_rows_backward.default(grad, x, stats, weight, gate, d_gate)
    return dx, [part.clone() for part in sums.view(3, -1)]


hidden = _compiled("_adapter_hidden")
"""(z, s, seed, probability, relu) -> s ⊙ dropout(act(z)); s float32 or float64 [N], seed None where nothing drops."""

hidden_backward = _compiled("_adapter_hidden_backward")
"""(back, z, s, seed, probability, relu) -> (dz, its sum over rows, back · dropout(act(z)) per row)."""

output = _compiled("_adapter_output")
"""(a, up_bias, s, clouds): a += s ⊗ up_bias; returns the mean over each cloud's rows of GELU(a), for clouds > 0."""

gradient = _compiled("_adapter_gradient")
"""(grad, grad_prompt, a, up_bias, s) -> (sum of s ⊙ g, g · up_bias per row).

g is `grad`; with `grad_prompt` it has the prompt's share as well, at a + s ⊗ up_bias, and is left in the place of a.
"""
