"""A linear map whose weight and bias are frozen."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pointpeft.ops.core import checks, derivatives, library, products
from pointpeft.ops.frozen.scale_shift import _backward_op as _scale_shift_backward_op
from pointpeft.ops.frozen.scale_shift import _op as _scale_shift_op


def _cpu(x, weight, bias):
    return products.linear(x.contiguous(), weight, bias)


def _cuda(x, weight, bias):
    return F.linear(x, weight, bias)


def _fake(x, weight, bias):
    return x.new_empty((x.shape[0], weight.shape[0]))


_op = library.define("frozen_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor", cpu=_cpu, cuda=_cuda, fake=_fake)


class _FrozenLinear(torch.autograd.Function):
    """Keeps the weight."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(weight)
        return _op(x, weight, bias)

    @staticmethod
    @derivatives.once_differentiable("pointpeft.ops.frozen_linear")
    def backward(ctx, grad):
        (weight,) = ctx.saved_tensors
        return _op(grad, weight.t(), None), None, None


class _FrozenLinearScaleShift(torch.autograd.Function):
    """Keeps x, the weights and γ; the map's output, which the gradient of γ reads, is computed again.

    Without its bias, which would be one more pass over it: γ b goes into β, and what b adds to the gradient of γ
    follows from that of β.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, gamma, beta):
        ctx.save_for_backward(x, weight, bias, gamma)
        return _scale_shifted(x, weight, bias, gamma, beta)

    @staticmethod
    @derivatives.once_differentiable("pointpeft.ops.frozen_linear")
    def backward(ctx, grad):
        x, weight, bias, gamma = ctx.saved_tensors
        dz, d_gamma, d_beta = _scale_shift_backward_op(grad.contiguous(), _op(x, weight, None), gamma)
        d_gamma = d_gamma if bias is None else torch.addcmul(d_gamma, bias, d_beta)
        return _op(dz, weight.t(), None), None, None, d_gamma, d_beta


def _scale_shifted(x, weight, bias, gamma, beta):
    beta = beta if bias is None else torch.addcmul(beta, bias, gamma)
    return _scale_shift_op(_op(x, weight, None), gamma, beta)


def checked(
    x: Tensor, weight: Tensor, bias: Tensor | None, gamma: Tensor | None, beta: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Arguments of a frozen map, under autocast in its type; a ValueError names one that is wrong."""
    if (gamma is None) != (beta is None):
        raise ValueError(f"gamma and beta must be given together, got {'beta' if gamma is None else 'gamma'} alone")
    if not isinstance(weight, Tensor):
        raise ValueError(f"weight must be a tensor, got {type(weight).__name__}")
    rows = checks.num_rows(weight)
    given = {"weight": weight, "bias": bias, "gamma": gamma, "beta": beta}
    given = {name: tensor for name, tensor in given.items() if tensor is not None}
    x, *cast = library.autocast(x, *given.values())
    tensors = dict(zip(given, cast, strict=True))
    for name, tensor in tensors.items():
        checks.require_shape(name, tensor, (rows, x.shape[-1]) if name == "weight" else (rows,))
        checks.require_same_kind(name, tensor, "x", x)
        if name in ("weight", "bias") and tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} must be frozen, but it requires a gradient")
    return x, tensors["weight"], tensors.get("bias"), tensors.get("gamma"), tensors.get("beta")


def frozen_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
) -> Tensor:
    """Maps y = W x + b over the last axis with a frozen map: on the CPU by the faster matrix library.

    With γ and β gives γ ⊙ y + β, differentiable in x, γ and β; without them in x alone. The gradient of γ computes the
    map again from x, which an operation before this one often keeps anyway.

    Args:
        x: Any strides; under autocast all tensors are cast to its type. [..., C]
        weight: [O, C]
        bias: [O]
        gamma: Together with `beta`, or neither. [O]
        beta: [O]

    Returns:
        [..., O]

    Raises:
        ValueError: A wrong shape, dtype or device, one of `gamma` and `beta` alone, or a weight or bias that asks for a
            gradient.

    Source of γ and β: Lian et al., "Scaling & shifting your features", NeurIPS 2022, Eq. 2.
    """
    checks.require_channels("x", x)
    x, weight, bias, gamma, beta = checked(x, weight, bias, gamma, beta)
    rows = weight.shape[0]
    if library.use_fused_reference(x) or torch.compiler.is_compiling():  # compilers choose their own library
        return frozen_linear_reference(x, weight, bias, gamma, beta)
    flat = x.reshape(-1, x.shape[-1])
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, gamma, beta))
    if gamma is None or beta is None:
        y = _FrozenLinear.apply(flat, weight, bias) if wanted else _op(flat, weight, bias)
    elif wanted:
        y = _FrozenLinearScaleShift.apply(flat, weight, bias, gamma, beta)
    else:
        y = _scale_shifted(flat, weight, bias, gamma, beta)
    return y.view(*x.shape[:-1], rows)


def frozen_linear_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
) -> Tensor:
    """The definition in plain PyTorch; arguments and result as in `frozen_linear`."""
    y = F.linear(x, weight, bias)
    return y if gamma is None or beta is None else gamma * y + beta
