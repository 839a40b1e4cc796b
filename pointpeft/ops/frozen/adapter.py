"""The dynamic adapter: LayerNorm, a bottleneck and a gate per token in one pass, and its prompt."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from pointpeft.ops.core import checks, dropout, library
from pointpeft.ops.frozen import _adapter
from pointpeft.ops.frozen._adapter import AdapterWeights


def checked_weights(weights: AdapterWeights, like: Tensor, channels: int, prefix: str = "") -> AdapterWeights:
    """`weights`, of the dtype and on the device of `like`; a ValueError names one that is wrong, behind `prefix`."""
    c, r = channels, checks.num_rows(weights.down_weight)
    shapes = ((c,), (c,), (1, c), (1,), (r, c), (r,), (c, r), (c,))
    for name, weight, shape in zip(AdapterWeights._fields, weights, shapes, strict=True):
        checks.require_shape(prefix + name, weight, shape)
        checks.require_same_kind(prefix + name, weight, "x", like)
    return weights


def adapter(
    x: Tensor,
    weights: AdapterWeights,
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
        weights: Of LN, of the gate w and c, and of the maps down and up.
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
    checks.require_weights("weights", weights, AdapterWeights)
    x, *cast = library.autocast(x, *weights)
    checks.require_floating("x", x, 3)
    checks.require_channels("x", x)
    weights = checked_weights(AdapterWeights(*cast), x, x.shape[-1])
    checks.require_number("eps", eps, 0.0, "a finite number of at least 0")
    seed = _adapter.checked_seed(x, seed, dropout_p, training)
    if library.use_fused_reference(x):
        options = {"eps": eps, "dropout_p": dropout_p, "training": training, "seed": seed}
        return adapter_reference(x, weights, **options, with_prompt=with_prompt)
    a, prompt = _adapter.apply(x, weights, seed, eps, dropout_p, with_prompt)
    return (a, prompt) if with_prompt else a


def adapter_reference(
    x: Tensor,
    weights: AdapterWeights,
    *,
    eps: float = 1e-5,
    dropout_p: float = 0.0,
    training: bool = False,
    seed: Tensor | None = None,
    with_prompt: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The definition in plain PyTorch; arguments and result as in `adapter`."""
    u = F.layer_norm(x, x.shape[-1:], weights.norm_weight, weights.norm_bias, eps)
    s = F.relu(F.linear(u, weights.gate_weight, weights.gate_bias))  # [B, T, 1]
    h = F.gelu(F.linear(u, weights.down_weight, weights.down_bias))
    if training and dropout_p > 0:
        seed = dropout.fresh_seed(x.device) if seed is None else seed
        h = h * dropout.mask(seed, h.numel(), dropout_p).view_as(h) / (1 - dropout_p)
    a = s * F.linear(h, weights.up_weight, weights.up_bias)
    return (a, F.gelu(a).mean(1)) if with_prompt else a
