"""A linear map whose weight and bias are frozen."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pointpeft.ops import _check, _library, _matmul


def _cpu(x, weight, bias):
    return _matmul.linear(x.contiguous(), weight, bias)


def _cuda(x, weight, bias):
    return F.linear(x, weight, bias)


def _fake(x, weight, bias):
    return x.new_empty((x.shape[0], weight.shape[0]))


_op = _library.define(
    "frozen_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor", cpu=_cpu, cuda=_cuda, fake=_fake
)


class _FrozenLinear(torch.autograd.Function):
    """Keeps the weight."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(weight)
        return _op(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (weight,) = ctx.saved_tensors
        return _op(grad, weight.t(), None), None, None


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Maps y = W x + b over the last axis, differentiable in x alone: on the CPU by the faster matrix library.

    Args:
        x: Any strides; under autocast all tensors are cast to its type. [..., C]
        weight: [O, C]
        bias: [O]

    Returns:
        [..., O]

    Raises:
        ValueError: A wrong shape, dtype or device, or a weight or bias that asks for a gradient.
    """
    _check.last("x", x)
    names = ("weight",) if bias is None else ("weight", "bias")
    x, *tensors = _library.autocast(x, weight, *(() if bias is None else (bias,)))
    rows = _check.rows(weight)
    for name, tensor, shape in zip(names, tensors, ((rows, x.shape[-1]), (rows,)), strict=False):
        _check.shaped(name, tensor, shape)
        _check.same(name, tensor, "x", x)
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} must be frozen, but it requires a gradient")
    weight, bias = tensors[0], None if bias is None else tensors[1]
    if _library.use_fused_reference(x) or torch.compiler.is_compiling():  # compilers choose their own library
        return frozen_linear_reference(x, weight, bias)
    flat = x.reshape(-1, x.shape[-1])
    wanted = torch.is_grad_enabled() and x.requires_grad
    y = _FrozenLinear.apply(flat, weight, bias) if wanted else _op(flat, weight, bias)
    return y.view(*x.shape[:-1], rows)


def frozen_linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The definition in plain PyTorch; arguments and result as in `frozen_linear`."""
    return F.linear(x, weight, bias)
