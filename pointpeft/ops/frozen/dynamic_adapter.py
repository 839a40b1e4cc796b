"""DAPT's dynamic adapter: LayerNorm, a bottleneck and a scale per token in one pass, and its prompt."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from pointpeft.ops.core import checks, dropout, library
from pointpeft.ops.frozen import _adapter


def dynamic_adapter(
    x: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    scale_weight: Tensor,
    scale_bias: Tensor,
    down_weight: Tensor,
    down_bias: Tensor,
    up_weight: Tensor,
    up_bias: Tensor,
    *,
    eps: float = 1e-5,
    dropout_p: float = 0.0,
    training: bool = False,
    seed: Tensor | None = None,
    with_prompt: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Adapts tokens: a = s ⊙ (W_up dropout(GELU(W_down u + b)) + b') with u = LN(x), s = ReLU(w·u + c) per token.

    Differentiable in all tensors but `seed`. For the backward only `x` is kept; the rest is computed again.

    Args:
        x: Tokens, any strides; under autocast all tensors are cast to its type. [B, T, C]
        ln_weight: [C]
        ln_bias: [C]
        scale_weight: [1, C]
        scale_bias: [1]
        down_weight: [R, C]
        down_bias: [R]
        up_weight: [C, R]
        up_bias: [C]
        eps: Added to the variance in LN.
        dropout_p: Probability of an element of the bottleneck to be dropped, in [0, 1).
        training: Whether to drop.
        seed: Decides, with an element's index, what is dropped; None takes a fresh one from the default generator.
            int64, []
        with_prompt: Also return the mean over tokens of GELU(a).

    Returns:
        a, contiguous [B, T, C]; with `with_prompt` also the prompt [B, C].

    Raises:
        ValueError: A wrong shape, dtype, device or probability.

    Source: Zhou et al., "Dynamic adapter meets prompt tuning", CVPR 2024, Eqs. 4-6 and §3.3.
    """
    if not isinstance(x, Tensor):
        raise ValueError(f"x must be a tensor, got {type(x).__name__}")
    names = ("ln_weight", "ln_bias", "scale_weight", "scale_bias", "down_weight", "down_bias", "up_weight", "up_bias")
    weights = (ln_weight, ln_bias, scale_weight, scale_bias, down_weight, down_bias, up_weight, up_bias)
    x, *weights = library.autocast(x, *weights)
    checks.require_floating("x", x, 3)
    checks.require_channels("x", x)
    c, r = x.shape[-1], checks.num_rows(down_weight)
    shapes = ((c,), (c,), (1, c), (1,), (r, c), (r,), (c, r), (c,))
    for name, weight, shape in zip(names, weights, shapes, strict=True):
        checks.require_shape(name, weight, shape)
        checks.require_same_kind(name, weight, "x", x)
    checks.require_number("eps", eps, 0.0, "a finite number of at least 0")
    seed = _adapter.checked_seed(x, seed, dropout_p, training)
    if library.use_fused_reference(x):
        return dynamic_adapter_reference(
            x, *weights, eps=eps, dropout_p=dropout_p, training=training, seed=seed, with_prompt=with_prompt
        )
    a, prompt = _adapter.apply(x, weights, seed, eps, 1.0, dropout_p, "gelu", with_prompt)
    return (a, prompt) if with_prompt else a


def dynamic_adapter_reference(
    x: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    scale_weight: Tensor,
    scale_bias: Tensor,
    down_weight: Tensor,
    down_bias: Tensor,
    up_weight: Tensor,
    up_bias: Tensor,
    *,
    eps: float = 1e-5,
    dropout_p: float = 0.0,
    training: bool = False,
    seed: Tensor | None = None,
    with_prompt: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The definition in plain PyTorch; arguments and result as in `dynamic_adapter`."""
    u = F.layer_norm(x, x.shape[-1:], ln_weight, ln_bias, eps)
    s = F.relu(F.linear(u, scale_weight, scale_bias))  # [B, T, 1]
    h = F.gelu(F.linear(u, down_weight, down_bias))
    if training and dropout_p > 0:
        seed = dropout.fresh_seed(x.device) if seed is None else seed
        h = h * dropout.mask(seed, h.numel(), dropout_p).view_as(h) / (1 - dropout_p)
    a = s * F.linear(h, up_weight, up_bias)
    return (a, F.gelu(a).mean(1)) if with_prompt else a
