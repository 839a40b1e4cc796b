"""The plain bottleneck adapter: down, activation, dropout, up, times a constant, in one pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pointpeft.ops.core import checks, dropout, library
from pointpeft.ops.frozen import _adapter

ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu}


def bottleneck_adapter(
    x: Tensor,
    down_weight: Tensor,
    down_bias: Tensor,
    up_weight: Tensor,
    up_bias: Tensor,
    *,
    multiplier: float = 1.0,
    activation: str = "gelu",
    dropout_p: float = 0.0,
    training: bool = False,
    seed: Tensor | None = None,
) -> Tensor:
    """Adapts tokens: a = multiplier · (W_up dropout(act(W_down x + b)) + b'), without a residual.

    Differentiable in all tensors but `seed`. For the backward only `x` is kept; the rest is computed again.

    Args:
        x: Tokens, any strides; under autocast all tensors are cast to its type. [B, T, C]
        down_weight: [R, C]
        down_bias: [R]
        up_weight: [C, R]
        up_bias: [C]
        multiplier: A constant, as AdaptFormer's 0.1.
        activation: "gelu" (exact) or "relu".
        dropout_p: Probability of an element of the bottleneck to be dropped, in [0, 1).
        training: Whether to drop.
        seed: Decides, with an element's index, what is dropped; None takes a fresh one from the default generator.
            int64, []

    Returns:
        a, contiguous. [B, T, C]

    Raises:
        ValueError: A wrong shape, dtype, device, activation or probability.

    Source: Houlsby et al., "Parameter-efficient transfer learning for NLP", ICML 2019, Fig. 2; Chen et al.,
    "AdaptFormer", NeurIPS 2022, Eq. 4.
    """
    if not isinstance(x, Tensor):
        raise ValueError(f"x must be a tensor, got {type(x).__name__}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be {' or '.join(ACTIVATIONS)}, got {activation!r}")
    x, *weights = library.autocast(x, down_weight, down_bias, up_weight, up_bias)
    checks.require_floating("x", x, 3)
    checks.require_channels("x", x)
    c, r = x.shape[-1], checks.num_rows(down_weight)
    names, shapes = ("down_weight", "down_bias", "up_weight", "up_bias"), ((r, c), (r,), (c, r), (c,))
    for name, weight, shape in zip(names, weights, shapes, strict=True):
        checks.require_shape(name, weight, shape)
        checks.require_same_kind(name, weight, "x", x)
    checks.require_number("multiplier", multiplier, -torch.finfo(torch.float64).max, "a finite number")
    seed = _adapter.checked_seed(x, seed, dropout_p, training)
    if library.use_fused_reference(x):
        return bottleneck_adapter_reference(
            x, *weights, multiplier=multiplier, activation=activation, dropout_p=dropout_p, training=training, seed=seed
        )
    weights = (None, None, None, None, *weights)
    return _adapter.apply(x, weights, seed, 0.0, multiplier, dropout_p, activation, False)[0]


def bottleneck_adapter_reference(
    x: Tensor,
    down_weight: Tensor,
    down_bias: Tensor,
    up_weight: Tensor,
    up_bias: Tensor,
    *,
    multiplier: float = 1.0,
    activation: str = "gelu",
    dropout_p: float = 0.0,
    training: bool = False,
    seed: Tensor | None = None,
) -> Tensor:
    """The definition in plain PyTorch; arguments and result as in `bottleneck_adapter`."""
    h = ACTIVATIONS[activation](F.linear(x, down_weight, down_bias))
    if training and dropout_p > 0:
        seed = dropout.fresh_seed(x.device) if seed is None else seed
        h = h * dropout.mask(seed, h.numel(), dropout_p).view_as(h) / (1 - dropout_p)
    return multiplier * F.linear(h, up_weight, up_bias)
