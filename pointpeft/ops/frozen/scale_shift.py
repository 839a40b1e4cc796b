"""Channel-wise scale and shift."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pointpeft.ops.core import checks, derivatives, library, triton_launch
from pointpeft.ops.core import rows as _rows

if TYPE_CHECKING:
    import triton.language as tl

SPLITS = 64  # parts of the rows that the gradients of γ and β are summed over, each by its own program

_CONFIGS = [({"ROWS": 16, "BLOCK": 128}, 4, 2), ({"ROWS": 8, "BLOCK": 256}, 4, 2), ({"ROWS": 32, "BLOCK": 128}, 8, 2)]


@triton_launch.kernel(_CONFIGS, key=["C"])
def _forward_kernel(x, scale, shift, out, N, C, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Out = γ x + β; program (rows, channels). Moves 2 N C values."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = (rows < N)[:, None] & (columns < C)[None]
    place = rows[:, None] * C + columns[None]
    y = tl.load(x + place, there, 0.0).to(tl.float32)
    y = y * tl.load(scale + columns, columns < C, 0.0).to(tl.float32)[None]
    y += tl.load(shift + columns, columns < C, 0.0).to(tl.float32)[None]
    tl.store(out + place, y.to(out.dtype.element_ty), there)


@triton_launch.kernel(_CONFIGS, key=["C"])
def _backward_kernel(grad, x, scale, grad_x, parts, N, C, per_split, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Gradient of x, and sums over a part of the rows for γ and β; program (channels, part). Moves 3 N C values."""
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    split = tl.program_id(1).to(tl.int64)
    factor = tl.load(scale + columns, columns < C, 0.0).to(tl.float32)
    d_scale = tl.zeros((BLOCK,), tl.float32)
    d_shift = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, per_split, ROWS):
        offset = begin + tl.arange(0, ROWS)
        rows = split * per_split + offset
        there = ((rows < N) & (offset < per_split))[:, None] & (columns < C)[None]
        place = rows[:, None] * C + columns[None]
        g = tl.load(grad + place, there, 0.0).to(tl.float32)
        d_scale += tl.sum(g * tl.load(x + place, there, 0.0).to(tl.float32), 0)
        d_shift += tl.sum(g, 0)
        tl.store(grad_x + place, (g * factor[None]).to(grad_x.dtype.element_ty), there)
    tl.store(parts + split * 2 * C + columns, d_scale, columns < C)
    tl.store(parts + (split * 2 + 1) * C + columns, d_shift, columns < C)


def _launch(x, scale, shift):
    x, scale, shift = x.contiguous(), scale.contiguous(), shift.contiguous()
    n, c = x.shape
    out = torch.empty_like(x)
    if x.numel():
        _forward_kernel.launch(lambda meta: (-(-n // meta["ROWS"]), -(-c // meta["BLOCK"])), x, scale, shift, out, n, c)
    return out


def _launch_backward(grad, x, scale):
    grad, x, scale = grad.contiguous(), x.contiguous(), scale.contiguous()
    n, c = x.shape
    grad_x = torch.empty_like(x)
    splits = max(1, min(SPLITS, -(-n // 16)))
    parts = x.new_zeros(splits, 2, c, dtype=torch.float32)
    if x.numel():
        _backward_kernel.launch(
            lambda meta: (-(-c // meta["BLOCK"]), splits), grad, x, scale, grad_x, parts, n, c, -(-n // splits)
        )
    d_scale, d_shift = parts.sum(0).to(scale.dtype)
    return grad_x, d_scale.clone(), d_shift.clone()


def _cpu(x, scale, shift):
    out = x.new_empty(x.shape)
    _rows.forward(_rows.packed(x), scale, shift, False, out)
    return out


def _cpu_backward(grad, x, scale):
    grad_x = x.new_empty(x.shape)
    d_scale, d_shift = _rows.backward(_rows.packed(grad), _rows.packed(x), scale, None, grad_x)
    return grad_x, d_scale.to(scale.dtype), d_shift.to(scale.dtype)


def _fake(x, scale, shift):
    return x.new_empty(x.shape)


def _fake_backward(grad, x, scale):
    return x.new_empty(x.shape), scale.new_empty(scale.shape), scale.new_empty(scale.shape)


_op = library.define("scale_shift(Tensor x, Tensor scale, Tensor shift) -> Tensor", cpu=_cpu, cuda=_launch, fake=_fake)
_backward_op = library.define(
    "scale_shift_backward(Tensor grad, Tensor x, Tensor scale) -> (Tensor, Tensor, Tensor)",
    cpu=_cpu_backward,
    cuda=_launch_backward,
    fake=_fake_backward,
)


class _ScaleShift(torch.autograd.Function):
    """Keeps x and γ."""

    @staticmethod
    def forward(ctx, x, scale, shift):
        ctx.save_for_backward(x, scale)
        return _op(x, scale, shift)

    @staticmethod
    @derivatives.once_differentiable("pointpeft.ops.scale_shift")
    def backward(ctx, grad):
        return _backward_op(grad, *ctx.saved_tensors)


def scale_shift(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Scales and shifts: y = γ ⊙ x + β over the last axis, differentiable in all three; one copy of x is kept.

    Args:
        x: Any strides; under autocast all three are cast to its type. [..., C]
        scale: γ. [C]
        shift: β. [C]

    Returns:
        Contiguous, of the shape of `x`.

    Raises:
        ValueError: A wrong shape, dtype or device.

    Source: Lian et al., "Scaling & shifting your features", NeurIPS 2022, Eq. 2.
    """
    checks.require_channels("x", x)
    x, scale, shift = library.autocast(x, scale, shift)
    for name, tensor in (("scale", scale), ("shift", shift)):
        checks.require_shape(name, tensor, x.shape[-1:])
        checks.require_same_kind(name, tensor, "x", x)
    if library.use_fused_reference(x):
        return scale_shift_reference(x, scale, shift)
    rows = x.reshape(-1, x.shape[-1])
    if torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad or shift.requires_grad):
        return _ScaleShift.apply(rows, scale, shift).view(x.shape)
    return _op(rows, scale, shift).view(x.shape)


def scale_shift_reference(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The definition in plain PyTorch; arguments and result as in `scale_shift`."""
    return scale * x + shift
