"""The frozen MLP's registered operation, with or without a scale and a shift after each of its two maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pointpeft.ops.core import derivatives, library, products
from pointpeft.ops.core import rows as _rows

_ATEN = torch.ops.aten


class MlpWeights(NamedTuple):
    """Two frozen maps, and a scale and a shift after each: y = γ2 ⊙ (W2 GELU(γ1 ⊙ (W1 x + b1) + β1) + b2) + β2.

    A scale and its shift come together, or are both None where nothing scales and shifts.

    Attributes:
        w1: [H, C]
        b1: [H]
        w2: [C, H]
        b2: [C]
        scale1: γ1. [H]
        shift1: β1. [H]
        scale2: γ2. [C]
        shift2: β2. [C]
    """

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    scale1: Tensor | None = None
    shift1: Tensor | None = None
    scale2: Tensor | None = None
    shift2: Tensor | None = None


class ScaledMlp(NamedTuple):
    """As `MlpWeights`, with all scales and shifts there."""

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    scale1: Tensor
    shift1: Tensor
    scale2: Tensor
    shift2: Tensor


def filled(weights: MlpWeights) -> ScaledMlp:
    """`weights` with ones and zeros in the place of the scales and shifts that are None."""
    w1, b1, w2, b2, scale1, shift1, scale2, shift2 = weights
    if scale1 is None or shift1 is None:
        scale1, shift1 = torch.ones_like(b1), torch.zeros_like(b1)
    if scale2 is None or shift2 is None:
        scale2, shift2 = torch.ones_like(b2), torch.zeros_like(b2)
    return ScaledMlp(w1, b1, w2, b2, scale1, shift1, scale2, shift2)


def maps(
    x: Tensor,
    w1: Tensor,
    scale1: Tensor,
    shift1: Tensor,
    w2: Tensor,
    b2: Tensor | None = None,
    then: Callable[[Tensor, slice], Any] = lambda z, at: None,
    out: Tensor | None = None,
) -> Tensor:
    """Z = W2 GELU(γ1 ⊙ W1 x + β1) + b2 on the CPU, in `out` where it is given. [N, C] -> [N, C]

    `then` is called with each part of z, while it is near the cores, and its place.
    """
    x = x.contiguous()
    n, h = x.shape[0], w1.shape[0]
    most = _rows.per_chunk(h, x.dtype)
    z = x.new_empty(n, w2.shape[0]) if out is None else out
    hidden = _rows.scratch(min(n, most), h, x.dtype, "hidden")
    chunks = _rows.chunks(n, most)
    first, second = (products.prepared(w, n // max(1, len(chunks)), name) for w, name in ((w1, "w1"), (w2, "w2")))
    for begin, end in chunks:
        t = products.linear_gelu(x[begin:end], first, scale1, shift1, buffer=hidden[: end - begin])
        products.linear(t, second, b2, out=z[begin:end])
        then(z[begin:end], slice(begin, end))
    return z


# With scales z, the second map's output, is kept without its bias: γ2 b2 goes into β2, and what it adds to the gradient
# of γ2 follows from that of β2. On the CPU the first map is treated likewise, so that the products have no bias to add.


def _cpu(x, w1, b1, w2, b2, scale1, shift1, scale2, shift2):
    if scale1 is None:
        return maps(x, w1, x.new_ones(b1.shape), b1, w2, b2), x.new_empty(0)
    end = torch.addcmul(shift2, b2, scale2)
    y = x.new_empty(x.shape)
    shift1 = torch.addcmul(shift1, b1, scale1)
    z = maps(x, w1, scale1, shift1, w2, then=lambda z, at: _rows.forward(z, scale2, end, False, y[at]))
    return y, z


def _cpu_backward(grad, x, z, w1, b1, w2, b2, scale1, shift1, scale2):
    x, grad = x.contiguous(), _rows.packed(grad)
    n, c, h = *x.shape, w1.shape[0]
    shift1 = torch.addcmul(shift1, b1, scale1)
    most = _rows.per_chunk(h, x.dtype)
    rows = min(n, most)
    dx, dz = x.new_empty(n, c), x.new_empty(rows, c)
    hidden, d_hidden = (_rows.scratch(rows, h, x.dtype, name) for name in ("hidden", "d_hidden"))
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    sums = [x.new_zeros(t.shape, dtype=wide) for t in (scale1, scale1, scale2, scale2)]
    chunks = _rows.chunks(n, most)
    weights = {"w1": w1, "w2": w2.t(), "w1 back": w1.t()}
    first, second, back = (products.prepared(w, n // max(1, len(chunks)), name) for name, w in weights.items())
    for begin, end in chunks:
        t = products.linear(x[begin:end], first, buffer=hidden[: end - begin])
        outer = _rows.backward(grad[begin:end], z[begin:end], scale2, None, dz[: end - begin])
        dy = products.linear(dz[: end - begin], second, buffer=d_hidden[: end - begin])
        inner = _rows.backward(dy, t, scale1, shift1, dy)
        products.linear(dy, back, out=dx[begin:end])
        for total, part in zip(sums, (*inner, *outer), strict=True):
            total += part
    sums[0].addcmul_(b1, sums[1])
    sums[2].addcmul_(b2, sums[3])
    return dx, *(total.to(x.dtype) for total in sums)


def _cuda(x, w1, b1, w2, b2, scale1, shift1, scale2, shift2):
    if scale1 is None:
        return torch.addmm(b2, _ATEN.gelu_(torch.addmm(b1, x, w1.t())), w2.t()), x.new_empty(0)
    # γ and β of the first map go into its weight: cheaper than a pass over the hidden layer for more than C tokens.
    w1, b1 = w1 * scale1[:, None], torch.addcmul(shift1, b1, scale1)
    z = torch.mm(_ATEN.gelu_(torch.addmm(b1, x, w1.t())), w2.t())
    return torch.addcmul(torch.addcmul(shift2, b2, scale2), z, scale2), z


def _cuda_backward(grad, x, z, w1, b1, w2, b2, scale1, shift1, scale2):
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    d_shift2 = grad.sum(0, dtype=wide)
    d_scale2 = torch.addcmul((grad * z).sum(0, dtype=wide), d_shift2, b2)
    t = torch.addmm(b1, x, w1.t())  # [N, H], computed again
    dy = torch.mm(grad, w2 * scale2[:, None])
    _ATEN.gelu_backward.grad_input(dy, torch.addcmul(shift1, t, scale1), grad_input=dy)
    d_scale1, d_shift1 = t.mul_(dy).sum(0, dtype=wide), dy.sum(0, dtype=wide)
    dx = torch.mm(dy, w1 * scale1[:, None])
    return dx, *(d.to(x.dtype) for d in (d_scale1, d_shift1, d_scale2, d_shift2))


def _fake(x, w1, b1, w2, b2, scale1, shift1, scale2, shift2):
    return x.new_empty(x.shape), x.new_empty((0,) if scale1 is None else x.shape)


def _fake_backward(grad, x, z, w1, b1, w2, b2, scale1, shift1, scale2):
    return x.new_empty(x.shape), *(x.new_empty(t.shape) for t in (scale1, shift1, scale2, scale2))


op = library.define(
    "frozen_mlp(Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, Tensor? scale1, Tensor? shift1, Tensor? scale2, "
    "Tensor? shift2) -> (Tensor, Tensor)",
    cpu=_cpu,
    cuda=_cuda,
    fake=_fake,
)
"""y, and with scales the output z of the second map without its bias, else nothing."""

backward_op = library.define(
    "frozen_mlp_backward(Tensor grad, Tensor x, Tensor z, Tensor w1, Tensor b1, Tensor w2, Tensor b2, Tensor scale1, "
    "Tensor shift1, Tensor scale2) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    cpu=_cpu_backward,
    cuda=_cuda_backward,
    fake=_fake_backward,
)
"""Gradients of x, γ1, β1, γ2 and β2."""


class _FrozenMlp(torch.autograd.Function):
    """Keeps x, the second map's output and the weights."""

    @staticmethod
    def forward(ctx, x, w1, b1, w2, b2, scale1, shift1, scale2, shift2):
        y, z = op(x, w1, b1, w2, b2, scale1, shift1, scale2, shift2)
        ctx.save_for_backward(x, z, w1, b1, w2, b2, scale1, shift1, scale2)
        return y

    @staticmethod
    @derivatives.once_differentiable("pointpeft.ops.frozen_mlp")
    def backward(ctx, grad):
        dx, *sums = backward_op(grad.contiguous(), *ctx.saved_tensors)
        return dx, None, None, None, None, *sums


def apply(x: Tensor, weights: ScaledMlp) -> Tensor:
    """The MLP with its scales and shifts, of rows [N, C]."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights)):
        return _FrozenMlp.apply(x, *weights)
    return op(x, *weights)[0]
