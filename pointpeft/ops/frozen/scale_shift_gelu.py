"""GELU of a channel-wise scale and shift."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from pointpeft.ops.core import checks, derivatives, library, triton_launch
from pointpeft.ops.core import rows as _rows
from pointpeft.ops.core.triton_math import gelu, gelu_slope

if TYPE_CHECKING:
    import triton.language as tl

SPLITS = 64  # parts of the rows that the gradients of γ and β are summed over, each by its own program

_CONFIGS = [({"ROWS": 16, "BLOCK": 128}, 4, 2), ({"ROWS": 8, "BLOCK": 256}, 4, 2), ({"ROWS": 32, "BLOCK": 128}, 8, 2)]


@triton_launch.kernel(_CONFIGS, key=["C"])
def _forward_kernel(x, gamma, beta, out, N, C, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Out = GELU(γ x + β); program (rows, channels). Moves 2 N C values."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = (rows < N)[:, None] & (columns < C)[None]
    place = rows[:, None] * C + columns[None]
    y = tl.load(x + place, there, 0.0).to(tl.float32)
    y = y * tl.load(gamma + columns, columns < C, 0.0).to(tl.float32)[None]
    y += tl.load(beta + columns, columns < C, 0.0).to(tl.float32)[None]
    tl.store(out + place, gelu(y).to(out.dtype.element_ty), there)


@triton_launch.kernel(_CONFIGS, key=["C"])
def _backward_kernel(grad, x, gamma, beta, grad_x, parts, N, C, per_split, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Gradient of x, and sums over a part of the rows for γ and β; program (channels, part). Moves 3 N C values."""
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    split = tl.program_id(1).to(tl.int64)
    scale = tl.load(gamma + columns, columns < C, 0.0).to(tl.float32)[None]
    shift = tl.load(beta + columns, columns < C, 0.0).to(tl.float32)[None]
    d_gamma = tl.zeros((BLOCK,), tl.float32)
    d_beta = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, per_split, ROWS):
        offset = begin + tl.arange(0, ROWS)
        rows = split * per_split + offset
        there = ((rows < N) & (offset < per_split))[:, None] & (columns < C)[None]
        place = rows[:, None] * C + columns[None]
        value = tl.load(x + place, there, 0.0).to(tl.float32)
        g = tl.load(grad + place, there, 0.0).to(tl.float32) * gelu_slope(value * scale + shift)
        d_gamma += tl.sum(g * value, 0)
        d_beta += tl.sum(g, 0)
        tl.store(grad_x + place, (g * scale).to(grad_x.dtype.element_ty), there)
    tl.store(parts + split * 2 * C + columns, d_gamma, columns < C)
    tl.store(parts + (split * 2 + 1) * C + columns, d_beta, columns < C)


def _launch(x, gamma, beta):
    x, gamma, beta = x.contiguous(), gamma.contiguous(), beta.contiguous()
    n, c = x.shape
    out = torch.empty_like(x)
    if x.numel():
        _forward_kernel.launch(lambda meta: (-(-n // meta["ROWS"]), -(-c // meta["BLOCK"])), x, gamma, beta, out, n, c)
    return out


def _launch_backward(grad, x, gamma, beta):
    grad, x, gamma, beta = grad.contiguous(), x.contiguous(), gamma.contiguous(), beta.contiguous()
    n, c = x.shape
    grad_x = torch.empty_like(x)
    splits = max(1, min(SPLITS, -(-n // 16)))
    parts = x.new_zeros(splits, 2, c, dtype=torch.float32)
    if x.numel():
        _backward_kernel.launch(
            lambda meta: (-(-c // meta["BLOCK"]), splits), grad, x, gamma, beta, grad_x, parts, n, c, -(-n // splits)
        )
    d_gamma, d_beta = parts.sum(0).to(gamma.dtype)
    return grad_x, d_gamma.clone(), d_beta.clone()


def _cpu(x, gamma, beta):
    out = x.new_empty(x.shape)
    _rows.forward(_rows.packed(x), gamma, beta, True, out)
    return out


def _cpu_backward(grad, x, gamma, beta):
    grad_x = x.new_empty(x.shape)
    d_gamma, d_beta = _rows.backward(_rows.packed(grad), _rows.packed(x), gamma, beta, grad_x)
    return grad_x, d_gamma.to(gamma.dtype), d_beta.to(gamma.dtype)


def _fake(x, gamma, beta):
    return x.new_empty(x.shape)


def _fake_backward(grad, x, gamma, beta):
    return x.new_empty(x.shape), gamma.new_empty(gamma.shape), gamma.new_empty(gamma.shape)


_op = library.define(
    "scale_shift_gelu(Tensor x, Tensor gamma, Tensor beta) -> Tensor", cpu=_cpu, cuda=_launch, fake=_fake
)
_backward_op = library.define(
    "scale_shift_gelu_backward(Tensor grad, Tensor x, Tensor gamma, Tensor beta) -> (Tensor, Tensor, Tensor)",
    cpu=_cpu_backward,
    cuda=_launch_backward,
    fake=_fake_backward,
)


class _ScaleShiftGelu(torch.autograd.Function):
    """Keeps x, γ and β."""

    @staticmethod
    def forward(ctx, x, gamma, beta):
        ctx.save_for_backward(x, gamma, beta)
        return _op(x, gamma, beta)

    @staticmethod
    @derivatives.once_differentiable("pointpeft.ops.scale_shift_gelu")
    def backward(ctx, grad):
        return _backward_op(grad, *ctx.saved_tensors)


def scale_shift_gelu(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """Scales, shifts and activates: y = GELU(γ ⊙ x + β) over the last axis, differentiable in all three.

    One copy of x is kept for the backward, in the place of GELU's input and of the scale's.

    Args:
        x: Any strides; under autocast all three are cast to its type. [..., C]
        gamma: [C]
        beta: [C]

    Returns:
        Contiguous, of the shape of `x`.

    Raises:
        ValueError: A wrong shape, dtype or device.

    Source: Lian et al., "Scaling & shifting your features", NeurIPS 2022, Eq. 2; Zhou et al., "Dynamic adapter meets
    prompt tuning", CVPR 2024, §3.2.
    """
    checks.require_channels("x", x)
    x, gamma, beta = library.autocast(x, gamma, beta)
    for name, tensor in (("gamma", gamma), ("beta", beta)):
        checks.require_shape(name, tensor, x.shape[-1:])
        checks.require_same_kind(name, tensor, "x", x)
    if library.use_fused_reference(x):
        return scale_shift_gelu_reference(x, gamma, beta)
    rows = x.reshape(-1, x.shape[-1])
    if torch.is_grad_enabled() and (x.requires_grad or gamma.requires_grad or beta.requires_grad):
        return _ScaleShiftGelu.apply(rows, gamma, beta).view(x.shape)
    return _op(rows, gamma, beta).view(x.shape)


def scale_shift_gelu_reference(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """The definition in plain PyTorch; arguments and result as in `scale_shift_gelu`."""
    return F.gelu(gamma * x + beta)
