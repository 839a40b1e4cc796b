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
    def forward(ctx, x, weight, bias, scale, shift):
        ctx.save_for_backward(x, weight, bias, scale)
        return _scale_shifted(x, weight, bias, scale, shift)

    @staticmethod
    @derivatives.once_differentiable("pointpeft.ops.frozen_linear")
    def backward(ctx, grad):
        x, weight, bias, scale = ctx.saved_tensors
        dz, d_scale, d_shift = _scale_shift_backward_op(grad.contiguous(), _op(x, weight, None), scale)
        d_scale = d_scale if bias is None else torch.addcmul(d_scale, bias, d_shift)
        return _op(dz, weight.t(), None), None, None, d_scale, d_shift


def _scale_shifted(x, weight, bias, scale, shift):
    shift = shift if bias is None else torch.addcmul(shift, bias, scale)
    return _scale_shift_op(_op(x, weight, None), scale, shift)


def checked(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Arguments of a frozen map, under autocast in its type; a ValueError names one that is wrong."""
    checks.require_together("scale", scale, "shift", shift)
    if not isinstance(weight, Tensor):
        raise ValueError(f"weight must be a tensor, got {type(weight).__name__}")
    rows = checks.num_rows(weight)
    given = {"weight": weight, "bias": bias, "scale": scale, "shift": shift}
    given = {name: tensor for name, tensor in given.items() if tensor is not None}
    x, *cast = library.autocast(x, *given.values())
    tensors = dict(zip(given, cast, strict=True))
    for name, tensor in tensors.items():
        checks.require_shape(name, tensor, (rows, x.shape[-1]) if name == "weight" else (rows,))
        checks.require_same_kind(name, tensor, "x", x)
        if name in ("weight", "bias") and tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} must be frozen, but it requires a gradient")
    return x, tensors["weight"], tensors.get("bias"), tensors.get("scale"), tensors.get("shift")


def frozen_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """Maps y = W x + b over the last axis with a frozen map: on the CPU by the faster matrix library.

    With γ and β gives γ ⊙ y + β, differentiable in x, γ and β; without them in x alone. The gradient of γ computes the
    map again from x, which an operation before this one often keeps anyway.

    Args:
        x: Any strides; under autocast all tensors are cast to its type. [..., C]
        weight: [O, C]
        bias: [O]
        scale: γ, together with `shift`, or neither. [O]
        shift: β. [O]

    Returns:
        [..., O]

    Raises:
        ValueError: A wrong shape, dtype or device, one of `scale` and `shift` alone, or a weight or bias that asks for
            a gradient.

    Source of γ and β: Lian et al., "Scaling & shifting your features", NeurIPS 2022, Eq. 2.
    """
    checks.require_channels("x", x)
    x, weight, bias, scale, shift = checked(x, weight, bias, scale, shift)
    rows = weight.shape[0]
    if library.use_fused_reference(x) or torch.compiler.is_compiling():  # compilers choose their own library
        return frozen_linear_reference(x, weight, bias, scale, shift)
    flat = x.reshape(-1, x.shape[-1])
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, scale, shift))
    if scale is None or shift is None:
        y = _FrozenLinear.apply(flat, weight, bias) if wanted else _op(flat, weight, bias)
    elif wanted:
        y = _FrozenLinearScaleShift.apply(flat, weight, bias, scale, shift)
    else:
        y = _scale_shifted(flat, weight, bias, scale, shift)
    return y.view(*x.shape[:-1], rows)


def frozen_linear_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """The definition in plain PyTorch; arguments and result as in `frozen_linear`."""
    y = F.linear(x, weight, bias)
    return y if scale is None or shift is None else scale * y + shift
