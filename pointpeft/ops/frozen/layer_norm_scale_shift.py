"""LayerNorm with a scale and a shift after it, as one LayerNorm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pointpeft.ops.core import checks, library
from pointpeft.ops.core import rows as _rows


def _cpu(x, weight, bias, eps, dtype):
    out = x.new_empty(x.shape, dtype=dtype)
    rows = (-1, x.shape[-1])
    _rows.add_norm(_rows.packed(x.reshape(rows)), None, weight, bias, eps, None, out.view(rows))
    return out


def _composed(x, weight, bias, eps, dtype):
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps).to(dtype)


def _fake(x, weight, bias, eps, dtype):
    return x.new_empty(x.shape, dtype=dtype)


_op = library.define(
    "layer_norm(Tensor x, Tensor weight, Tensor bias, float eps, ScalarType dtype) -> Tensor",
    cpu=_cpu,
    cuda=_composed,
    fake=_fake,
)


def layer_norm_scale_shift(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Normalises, scales and shifts: y = γ ⊙ LN(x) + β over the last dimension.

    γ and β go into LN's own weight and bias, C multiplications each: what is kept for the backward is x, and two
    numbers per token. Differentiable in all tensors.

    Args:
        x: Any strides. [..., C]
        weight: Of LN. Like the others of the type of `x`, or float32 beside a short one. [C]
        bias: Of LN. [C]
        gamma: None where there is neither γ nor β. [C]
        beta: Together with `gamma`. [C]
        eps: Added to the variance.
        dtype: Of the result, which is rounded to it once; None for that of `x`.

    Returns:
        Of the shape of `x`.

    Raises:
        ValueError: A wrong shape, dtype or device.

    Source: Lian et al., "Scaling & shifting your features", NeurIPS 2022, Eq. 2 and Fig. 2.
    """
    checks.require_channels("x", x)
    if (gamma is None) != (beta is None):
        raise ValueError(f"gamma and beta must be given together, got {'beta' if gamma is None else 'gamma'} alone")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype must be a floating type of torch or None, got {dtype!r}")
    given = {"weight": weight, "bias": bias}
    if gamma is not None and beta is not None:
        given |= {"gamma": gamma, "beta": beta}
    for name, tensor in given.items():
        checks.require_shape(name, tensor, x.shape[-1:])
        checks.require_floating(name, tensor, 1)
        mixed = x.dtype.itemsize == 2 and tensor.dtype == torch.float32  # as LayerNorm allows
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, but x is on {x.device}")
        if tensor.dtype != x.dtype and not mixed and not torch.is_autocast_enabled(library.autocast_kind(x)):
            raise ValueError(f"{name} is {tensor.dtype}, but x is {x.dtype}")
    dtype = x.dtype if dtype is None else dtype
    if library.use_fused_reference(x):
        return layer_norm_scale_shift_reference(x, weight, bias, gamma, beta, eps, dtype=dtype)
    tensors = library.promoted(*given.values())
    weight, bias = tensors[:2]
    if gamma is not None:
        weight, bias = weight * tensors[2], torch.addcmul(tensors[3], bias, tensors[2])
    learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    on_cpu = x.device.type == "cpu"
    if on_cpu and x.dtype.itemsize == 2 and learns:
        # PyTorch sums the gradients of both weights over the tokens in the type of x there: in bfloat16 a sum of 2050
        # ends at 512.
        return F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), eps).to(dtype)
    wanted = learns or (torch.is_grad_enabled() and x.requires_grad)
    shorter = dtype.itemsize == 2 and x.dtype == weight.dtype == torch.float32
    if on_cpu and shorter and not wanted and not torch.compiler.is_compiling():
        return _op(x, weight, bias, float(eps), dtype)
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps).to(dtype)


def layer_norm_scale_shift_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The definition in plain PyTorch; arguments and result as in `layer_norm_scale_shift`."""
    if gamma is None or beta is None:
        weight, bias = library.promoted(weight, bias)
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps).to(dtype or x.dtype)
    weight, bias, gamma, beta = library.promoted(weight, bias, gamma, beta)
    y = F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    return (gamma * y + beta).to(dtype or y.dtype)
