"""A frozen MLP with a scale and a shift after each of its two maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pointpeft.ops.core import checks, derivatives, library, products
from pointpeft.ops.core import rows as _rows

_ATEN = torch.ops.aten


def _cuda(x, w1, b1, gamma1, beta1, w2, b2, gamma2, beta2):
    # γ and β of the first map go into its weight: cheaper than a pass over the hidden layer for more than C tokens.
    w1, b1 = w1 * gamma1[:, None], torch.addcmul(beta1, b1, gamma1)
    z = torch.mm(_ATEN.gelu_(torch.addmm(b1, x, w1.t())), w2.t())
    return torch.addcmul(torch.addcmul(beta2, b2, gamma2), z, gamma2), z


def _cuda_backward(grad, x, z, w1, b1, gamma1, beta1, w2, b2, gamma2):
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    d_beta2 = grad.sum(0, dtype=wide)
    d_gamma2 = torch.addcmul((grad * z).sum(0, dtype=wide), d_beta2, b2)
    t = torch.addmm(b1, x, w1.t())  # [N, H], computed again
    dy = torch.mm(grad, w2 * gamma2[:, None])
    _ATEN.gelu_backward.grad_input(dy, torch.addcmul(beta1, t, gamma1), grad_input=dy)
    d_gamma1, d_beta1 = t.mul_(dy).sum(0, dtype=wide), dy.sum(0, dtype=wide)
    dx = torch.mm(dy, w1 * gamma1[:, None])
    return dx, *(d.to(x.dtype) for d in (d_gamma1, d_beta1, d_gamma2, d_beta2))


# z is kept without its bias: γ2 b2 goes into β2, and what it adds to the gradient of γ2 follows from that of β2. On the
# CPU the first map is treated likewise, so that the products have no bias to add.


def _cpu(x, w1, b1, gamma1, beta1, w2, b2, gamma2, beta2):
    shift2 = torch.addcmul(beta2, b2, gamma2)
    y = x.new_empty(x.shape)
    z = maps(x, w1, b1, gamma1, beta1, w2, lambda z, at: _rows.forward(z, gamma2, shift2, False, y[at]))
    return y, z


def maps(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    gamma1: Tensor,
    beta1: Tensor,
    w2: Tensor,
    then: Callable[[Tensor, slice], Any] = lambda z, at: None,
    out: Tensor | None = None,
) -> Tensor:
    """Z = W2 GELU(γ1 ⊙ (W1 x + b1) + β1) on the CPU, in `out` where it is given. [N, C] -> [N, C]

    `then` is called with each part of z, while it is near the cores, and its place.
    """
    x = x.contiguous()
    n, h = x.shape[0], w1.shape[0]
    most = _rows.per_chunk(h, x.dtype)
    shift1 = torch.addcmul(beta1, b1, gamma1)
    z = x.new_empty(n, w2.shape[0]) if out is None else out
    hidden = _rows.scratch(min(n, most), h, x.dtype, "hidden")
    chunks = _rows.chunks(n, most)
    first, second = (products.prepared(w, n // max(1, len(chunks)), name) for w, name in ((w1, "w1"), (w2, "w2")))
    for begin, end in chunks:
        t = products.linear_gelu(x[begin:end], first, gamma1, shift1, buffer=hidden[: end - begin])
        products.linear(t, second, out=z[begin:end])
        then(z[begin:end], slice(begin, end))
    return z


def _cpu_backward(grad, x, z, w1, b1, gamma1, beta1, w2, b2, gamma2):
    x, grad = x.contiguous(), _rows.packed(grad)
    n, c, h = *x.shape, w1.shape[0]
    shift1 = torch.addcmul(beta1, b1, gamma1)
    most = _rows.per_chunk(h, x.dtype)
    rows = min(n, most)
    dx, dz = x.new_empty(n, c), x.new_empty(rows, c)
    hidden, d_hidden = (_rows.scratch(rows, h, x.dtype, name) for name in ("hidden", "d_hidden"))
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    sums = [x.new_zeros(t.shape, dtype=wide) for t in (gamma1, gamma1, gamma2, gamma2)]
    chunks = _rows.chunks(n, most)
    weights = {"w1": w1, "w2": w2.t(), "w1 back": w1.t()}
    first, second, back = (products.prepared(w, n // max(1, len(chunks)), name) for name, w in weights.items())
    for begin, end in chunks:
        t = products.linear(x[begin:end], first, buffer=hidden[: end - begin])
        outer = _rows.backward(grad[begin:end], z[begin:end], gamma2, None, dz[: end - begin])
        dy = products.linear(dz[: end - begin], second, buffer=d_hidden[: end - begin])
        inner = _rows.backward(dy, t, gamma1, shift1, dy)
        products.linear(dy, back, out=dx[begin:end])
        for total, part in zip(sums, (*inner, *outer), strict=True):
            total += part
    sums[0].addcmul_(b1, sums[1])
    sums[2].addcmul_(b2, sums[3])
    return dx, *(total.to(x.dtype) for total in sums)


def _fake(x, w1, b1, gamma1, beta1, w2, b2, gamma2, beta2):
    return x.new_empty(x.shape), x.new_empty(x.shape)


def _fake_backward(grad, x, z, w1, b1, gamma1, beta1, w2, b2, gamma2):
    return x.new_empty(x.shape), *(x.new_empty(t.shape) for t in (gamma1, beta1, gamma2, gamma2))


_op = library.define(
    "scale_shift_mlp(Tensor x, Tensor w1, Tensor b1, Tensor gamma1, Tensor beta1, Tensor w2, Tensor b2, "
    "Tensor gamma2, Tensor beta2) -> (Tensor, Tensor)",
    cpu=_cpu,
    cuda=_cuda,
    fake=_fake,
)
_backward_op = library.define(
    "scale_shift_mlp_backward(Tensor grad, Tensor x, Tensor z, Tensor w1, Tensor b1, Tensor gamma1, "
    "Tensor beta1, Tensor w2, Tensor b2, Tensor gamma2) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    cpu=_cpu_backward,
    cuda=_cuda_backward,
    fake=_fake_backward,
)


class _ScaleShiftMlp(torch.autograd.Function):
    """Keeps x, the second map's output and the weights."""

    @staticmethod
    def forward(ctx, x, w1, b1, gamma1, beta1, w2, b2, gamma2, beta2):
        y, z = _op(x, w1, b1, gamma1, beta1, w2, b2, gamma2, beta2)
        ctx.save_for_backward(x, z, w1, b1, gamma1, beta1, w2, b2, gamma2)
        return y

    @staticmethod
    @derivatives.once_differentiable("pointpeft.ops.scale_shift_mlp")
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
    checks.require_channels("x", x)
    h = checks.num_rows(w1)
    c = x.shape[-1]
    names = ("w1", "b1", "gamma1", "beta1", "w2", "b2", "gamma2", "beta2")
    x, *weights = library.autocast(x, w1, b1, gamma1, beta1, w2, b2, gamma2, beta2)
    shapes = ((h, c), (h,), (h,), (h,), (c, h), (c,), (c,), (c,))
    for name, tensor, shape in zip(names, weights, shapes, strict=True):
        checks.require_shape(name, tensor, shape)
        checks.require_same_kind(name, tensor, "x", x)
        if tensor.requires_grad and name in ("w1", "b1", "w2", "b2") and torch.is_grad_enabled():
            raise ValueError(f"{name} must be frozen, but it requires a gradient")
    if library.use_fused_reference(x):
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
