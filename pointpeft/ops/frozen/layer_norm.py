"""LayerNorm, and a scale and a shift after it as part of it."""

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


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-5,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Normalises over the last dimension: y = LN(x), or γ ⊙ LN(x) + β with a scale γ and a shift β.

    γ and β go into LN's own weight and bias, C multiplications each: what is kept for the backward is x, and two
    numbers per token. Differentiable in all tensors.

    Args:
        x: Any strides. [..., C]
        weight: Of LN. Like the others of the type of `x`, or float32 beside a short one. [C]
        bias: Of LN. [C]
        scale: γ; None where nothing scales and shifts. [C]
        shift: β, together with `scale`. [C]
        eps: Added to the variance.
        dtype: Of the result, which is rounded to it once; None for that of `x`.

    Returns:
        Of the shape of `x`.

    Raises:
        ValueError: A wrong shape, dtype or device.

    Source: Lian et al., "Scaling & shifting your features", NeurIPS 2022, Eq. 2 and Fig. 2.
    """
    given = _checked(x, weight, bias, scale, shift, dtype)
    dtype = x.dtype if dtype is None else dtype
    if library.use_fused_reference(x):
        return layer_norm_reference(x, weight, bias, scale, shift, eps, dtype=dtype)
    tensors = library.promoted(*given.values())
    weight, bias = tensors[:2]
    if scale is not None:
        scale, shift = tensors[2:]
        weight, bias = weight * scale, torch.addcmul(shift, bias, scale)
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


def _checked(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    dtype: torch.dtype | None,
) -> dict[str, Tensor]:
    """The tensors beside `x` that are given, by name; a ValueError names one that is wrong."""
    checks.require_channels("x", x)
    checks.require_together("scale", scale, "shift", shift)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype must be a floating type of torch or None, got {dtype!r}")
    given = {"weight": weight, "bias": bias}
    if scale is not None and shift is not None:
        given |= {"scale": scale, "shift": shift}
    for name, tensor in given.items():
        checks.require_shape(name, tensor, x.shape[-1:])
        checks.require_floating(name, tensor, 1)
        mixed = x.dtype.itemsize == 2 and tensor.dtype == torch.float32  # as LayerNorm allows
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, but x is on {x.device}")
        if tensor.dtype != x.dtype and not mixed and not torch.is_autocast_enabled(library.autocast_kind(x)):
            raise ValueError(f"{name} is {tensor.dtype}, but x is {x.dtype}")
    return given


def layer_norm_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-5,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The definition in plain PyTorch; arguments and result as in `layer_norm`."""
    if scale is None or shift is None:
        weight, bias = library.promoted(weight, bias)
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps).to(dtype or x.dtype)
    weight, bias, scale, shift = library.promoted(weight, bias, scale, shift)
    y = F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    return (scale * y + shift).to(dtype or y.dtype)
