"""A frozen MLP with a scale and a shift after each of its two maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pointpeft.ops import _check, _library

ROWS_PER_CHUNK = 512  # CPU: rows whose hidden layer (3 MB in float32 at the published size) stays in cache

_ATEN = torch.ops.aten


def _chunks(x: Tensor) -> int:
    return ROWS_PER_CHUNK if x.device.type == "cpu" else max(1, x.shape[0])


def _forward(x, w1, b1, gamma1, beta1, w2, b2, gamma2, beta2):
    # γ and β of the first map go into its weight: cheaper than a pass over the hidden layer for more than C tokens.
    w1, b1 = w1 * gamma1[:, None], torch.addcmul(beta1, b1, gamma1)
    z = x.new_empty(x.shape[0], w2.shape[0])
    y = torch.empty_like(z)
    step = _chunks(x)
    for part, z_part, y_part in zip(*(t.split(step) for t in (x, z, y)), strict=True):
        h = _ATEN.gelu_(torch.addmm(b1, part, w1.t()))
        torch.addmm(b2, h, w2.t(), out=z_part)
        torch.addcmul(beta2, z_part, gamma2, out=y_part)
    return y, z


def _backward(grad, x, z, w1, b1, gamma1, beta1, w2, gamma2):
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    d_gamma1, d_beta1, d_gamma2, d_beta2 = (t.new_zeros(t.shape, dtype=wide) for t in (gamma1, beta1, gamma2, gamma2))
    back1, back2 = w1 * gamma1[:, None], w2 * gamma2[:, None]
    dx = x.new_empty(x.shape)
    step = _chunks(x)
    for g, part, z_part, out in zip(*(t.split(step) for t in (grad, x, z, dx)), strict=True):
        d_gamma2 += (g * z_part).sum(0)
        d_beta2 += g.sum(0)
        t = torch.addmm(b1, part, w1.t())  # [rows, H], computed again
        dy = torch.mm(g, back2)
        _ATEN.gelu_backward.grad_input(dy, torch.addcmul(beta1, t, gamma1), grad_input=dy)
        d_gamma1 += t.mul_(dy).sum(0)
        d_beta1 += dy.sum(0)
        torch.mm(dy, back1, out=out)
    return dx, *(d.to(x.dtype) for d in (d_gamma1, d_beta1, d_gamma2, d_beta2))


def _fake(x, w1, b1, gamma1, beta1, w2, b2, gamma2, beta2):
    return tuple(x.new_empty((x.shape[0], w2.shape[0])) for _ in range(2))


def _fake_backward(grad, x, z, w1, b1, gamma1, beta1, w2, gamma2):
    return x.new_empty(x.shape), *(x.new_empty(t.shape) for t in (gamma1, beta1, gamma2, gamma2))


_op = _library.define(
    "scale_shift_mlp(Tensor x, Tensor w1, Tensor b1, Tensor gamma1, Tensor beta1, Tensor w2, Tensor b2, "
    "Tensor gamma2, Tensor beta2) -> (Tensor, Tensor)",
    cpu=_forward,
    cuda=_forward,
    fake=_fake,
)
_backward_op = _library.define(
    "scale_shift_mlp_backward(Tensor grad, Tensor x, Tensor z, Tensor w1, Tensor b1, Tensor gamma1, Tensor beta1, "
    "Tensor w2, Tensor gamma2) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    cpu=_backward,
    cuda=_backward,
    fake=_fake_backward,
)


class _ScaleShiftMlp(torch.autograd.Function):
    """Keeps x, the second map's output and the weights."""

    @staticmethod
    def forward(ctx, x, w1, b1, gamma1, beta1, w2, b2, gamma2, beta2):
        y, z = _op(x, w1, b1, gamma1, beta1, w2, b2, gamma2, beta2)
        ctx.save_for_backward(x, z, w1, b1, gamma1, beta1, w2, gamma2)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        dx, d_gamma1, d_beta1, d_gamma2, d_beta2 = _backward_op(grad.contiguous(), *ctx.saved_tensors)
        return dx, None, None, d_gamma1, d_beta1, None, None, d_gamma2, d_beta2


def scale_shift_mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    gamma1: Tensor,
    beta1: Tensor,
    w2: Tensor,
    b2: Tensor,
    gamma2: Tensor,
    beta2: Tensor,
) -> Tensor:
    """An MLP whose maps are adapted: y = γ2 ⊙ (W2 GELU(γ1 ⊙ (W1 x + b1) + β1) + b2) + β2, with frozen maps.

    Differentiable in x, γ and β, not in the maps. For the backward x and the second map's output are kept; the hidden
    layer, four times as wide, is computed again.

    Args:
        x: Any strides; under autocast all tensors are cast to its type. [..., C]
        w1: [H, C]
        b1: [H]
        gamma1: [H]
        beta1: [H]
        w2: [C, H]
        b2: [C]
        gamma2: [C]
        beta2: [C]

    Returns:
        Contiguous, of the shape of `x`.

    Raises:
        ValueError: A wrong shape, dtype or device, or a map that asks for a gradient.

    Source: Zhou et al., "Dynamic adapter meets prompt tuning", CVPR 2024, §3.2.
    """
    _check.last("x", x)
    h = _check.rows(w1)
    c = x.shape[-1]
    names = ("w1", "b1", "gamma1", "beta1", "w2", "b2", "gamma2", "beta2")
    x, *weights = _library.autocast(x, w1, b1, gamma1, beta1, w2, b2, gamma2, beta2)
    shapes = ((h, c), (h,), (h,), (h,), (c, h), (c,), (c,), (c,))
    for name, tensor, shape in zip(names, weights, shapes, strict=True):
        _check.shaped(name, tensor, shape)
        _check.same(name, tensor, "x", x)
        if tensor.requires_grad and name in ("w1", "b1", "w2", "b2") and torch.is_grad_enabled():
            raise ValueError(f"{name} must be frozen, but it requires a gradient")
    if _library.use_fused_reference(x):
        return scale_shift_mlp_reference(x, *weights)
    rows = x.reshape(-1, c)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights)):
        return _ScaleShiftMlp.apply(rows, *weights).view(x.shape)
    return _op(rows, *weights)[0].view(x.shape)


def scale_shift_mlp_reference(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    gamma1: Tensor,
    beta1: Tensor,
    w2: Tensor,
    b2: Tensor,
    gamma2: Tensor,
    beta2: Tensor,
) -> Tensor:
    """The definition in plain PyTorch; arguments and result as in `scale_shift_mlp`."""
    h = F.gelu(gamma1 * F.linear(x, w1, b1) + beta1)
    return gamma2 * F.linear(h, w2, b2) + beta2
