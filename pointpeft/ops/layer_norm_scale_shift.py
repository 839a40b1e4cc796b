"""LayerNorm with a scale and a shift after it, as one LayerNorm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pointpeft.ops import _check, _library


def layer_norm_scale_shift(
    x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, eps: float = 1e-5
) -> Tensor:
    """Normalises, scales and shifts: y = γ ⊙ LN(x) + β over the last dimension.

    γ and β go into LN's own weight and bias, C multiplications each: what is kept for the backward is x, and two
    numbers per token. Differentiable in all tensors.

    Args:
        x: Any strides. [..., C]
        weight: Of LN. Like the others of the type of `x`, or float32 beside a short one. [C]
        bias: Of LN. [C]
        gamma: [C]
        beta: [C]
        eps: Added to the variance.

    Returns:
        Of the shape of `x`.

    Raises:
        ValueError: A wrong shape, dtype or device.

    Source: Lian et al., "Scaling & shifting your features", NeurIPS 2022, Eq. 2 and Fig. 2.
    """
    _check.last("x", x)
    for name, tensor in (("weight", weight), ("bias", bias), ("gamma", gamma), ("beta", beta)):
        _check.shaped(name, tensor, x.shape[-1:])
        _check.floating(name, tensor, 1)
        mixed = x.dtype.itemsize == 2 and tensor.dtype == torch.float32  # as LayerNorm allows
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, but x is on {x.device}")
        if tensor.dtype != x.dtype and not mixed and not torch.is_autocast_enabled(_library.autocast_kind(x)):
            raise ValueError(f"{name} is {tensor.dtype}, but x is {x.dtype}")
    if _library.use_fused_reference(x):
        return layer_norm_scale_shift_reference(x, weight, bias, gamma, beta, eps)
    weight, bias, gamma, beta = _library.promoted(weight, bias, gamma, beta)
    learns = any(tensor.requires_grad for tensor in (weight, bias, gamma, beta))
    if x.device.type == "cpu" and x.dtype.itemsize == 2 and learns and torch.is_grad_enabled():
        # PyTorch sums the gradients of both weights over the tokens in the type of x there: in bfloat16 a sum of 2050
        # ends at 512.
        y = F.layer_norm(x.float(), x.shape[-1:], weight.float() * gamma, torch.addcmul(beta, bias, gamma).float(), eps)
        return y.to(x.dtype)
    return F.layer_norm(x, x.shape[-1:], weight * gamma, torch.addcmul(beta, bias, gamma), eps)


def layer_norm_scale_shift_reference(
    x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, eps: float = 1e-5
) -> Tensor:
    """The definition in plain PyTorch; arguments and result as in `layer_norm_scale_shift`."""
    weight, bias, gamma, beta = _library.promoted(weight, bias, gamma, beta)
    y = F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    return (gamma * y + beta).to(y.dtype)
