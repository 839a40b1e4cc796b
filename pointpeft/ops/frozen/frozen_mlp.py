"""An MLP whose two maps are frozen."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pointpeft.ops.core import checks, library, products, rows
from pointpeft.ops.frozen.frozen_linear import frozen_linear

_ATEN = torch.ops.aten


def _cpu(x, w1, b1, w2, b2):
    x = x.contiguous()
    n, (h, c) = x.shape[0], w1.shape
    most = rows.per_chunk(h, x.dtype)
    y, hidden, one = x.new_empty(n, c), rows.scratch(min(n, most), h, x.dtype, "hidden"), x.new_ones(h)
    chunks = rows.chunks(n, most)
    first, second = (products.prepared(w, n // max(1, len(chunks)), name) for w, name in ((w1, "w1"), (w2, "w2")))
    for begin, end in chunks:
        t = products.linear_gelu(x[begin:end], first, one, b1, buffer=hidden[: end - begin])
        products.linear(t, second, b2, out=y[begin:end])
    return y


def _cuda(x, w1, b1, w2, b2):
    return torch.addmm(b2, _ATEN.gelu_(torch.addmm(b1, x, w1.t())), w2.t())


def _fake(x, w1, b1, w2, b2):
    return x.new_empty(x.shape)


_op = library.define(
    "frozen_mlp(Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2) -> Tensor", cpu=_cpu, cuda=_cuda, fake=_fake
)


def frozen_mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """Y = W2 GELU(W1 x + b1) + b2 over the last axis, with frozen maps and the exact GELU.

    Differentiable in x. Where no gradient is asked for, the hidden layer is never whole: on the CPU it is a buffer of
    some rows, in which GELU is taken while they are near the cores.

    Args:
        x: Any strides; under autocast all tensors are cast to its type. [..., C]
        w1: [H, C]
        b1: [H]
        w2: [C, H]
        b2: [C]

    Returns:
        [..., C]

    Raises:
        ValueError: A wrong shape, dtype or device, or a map that asks for a gradient.

    Source: Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021, Eq. 3.
    """
    checks.require_channels("x", x)
    h, c = checks.num_rows(w1), x.shape[-1]
    x, *weights = library.autocast(x, w1, b1, w2, b2)
    for name, tensor, shape in zip(("w1", "b1", "w2", "b2"), weights, ((h, c), (h,), (c, h), (c,)), strict=True):
        checks.require_shape(name, tensor, shape)
        checks.require_same_kind(name, tensor, "x", x)
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} must be frozen, but it requires a gradient")
    if library.use_fused_reference(x) or torch.compiler.is_compiling():  # compilers choose their own library
        return frozen_mlp_reference(x, *weights)
    w1, b1, w2, b2 = weights
    if torch.is_grad_enabled() and x.requires_grad:
        return frozen_linear(F.gelu(frozen_linear(x, w1, b1)), w2, b2) if h else frozen_mlp_reference(x, *weights)
    return _op(x.reshape(-1, c), w1, b1, w2, b2).view(x.shape)


def frozen_mlp_reference(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """The definition in plain PyTorch; arguments and result as in `frozen_mlp`."""
    return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)
