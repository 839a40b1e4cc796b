"""An MLP whose two maps are frozen, alone or with an adapter beside it."""

from __future__ import annotations

from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from pointpeft.ops.core import checks, library
from pointpeft.ops.frozen import _adapted_mlp, _adapter, _mlp
from pointpeft.ops.frozen._adapted_mlp import NormWeights
from pointpeft.ops.frozen._adapter import AdapterWeights
from pointpeft.ops.frozen._mlp import MlpWeights
from pointpeft.ops.frozen.adapter import adapter_reference, checked_weights
from pointpeft.ops.frozen.frozen_linear import frozen_linear
from pointpeft.ops.frozen.layer_norm import layer_norm_reference


@overload
def frozen_mlp(x: Tensor, weights: MlpWeights) -> Tensor: ...
@overload
def frozen_mlp(
    x: Tensor,
    weights: MlpWeights,
    *,
    norm: NormWeights,
    adapter: AdapterWeights,
    branch: Tensor | None = None,
    norm_eps: float = 1e-5,
    eps: float = 1e-5,
    dropout_p: float = 0.0,
    training: bool = False,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...
def frozen_mlp(
    x: Tensor,
    weights: MlpWeights,
    *,
    norm: NormWeights | None = None,
    adapter: AdapterWeights | None = None,
    branch: Tensor | None = None,
    norm_eps: float = 1e-5,
    eps: float = 1e-5,
    dropout_p: float = 0.0,
    training: bool = False,
    seed: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """An MLP over the last axis with frozen maps and the exact GELU: y = W2 GELU(W1 x + b1) + b2.

    With scales and shifts y = γ2 ⊙ (W2 GELU(γ1 ⊙ (W1 x + b1) + β1) + b2) + β2. With `norm` and `adapter` the second
    half of DAPT's block, y = MLP(u) + A(u) and A's prompt, where u = γ ⊙ LN(x) + β; with `branch` both residuals of the
    block belong to it: x + branch stands in the place of x, and is added to y.

    Differentiable in all tensors but the maps. Where no gradient is asked for, the hidden layer is never whole: on the
    CPU it is a buffer of some rows. Else x is kept and, with scales or an adapter, the output of the second map; the
    hidden layer, four times as wide, and u, which both branches read, are computed again.

    Args:
        x: Any strides; under autocast all tensors but those of the norm are cast to its type. [..., C], with an adapter
            tokens [B, T, C]
        weights: Both maps, and the scales and shifts after them.
        norm: Of LN, and γ and β; together with `adapter`.
        adapter: As `pointpeft.ops.adapter` takes them.
        branch: What attention adds to x; under autocast of its type while x may stay float32. [B, T, C]
        norm_eps: Added to the variance of x.
        eps: Added to the variance of u in the adapter's own LayerNorm.
        dropout_p: Probability of an element of the adapter's bottleneck to be dropped, in [0, 1).
        training: Whether to drop.
        seed: Decides, with an element's index, what is dropped; None takes a fresh one. int64, []

    Returns:
        y, of the shape of `x`. With an adapter also the prompt, the mean over tokens of GELU(A(u)) [B, C]; y is then
        of the type that x and a `branch` have together.

    Raises:
        ValueError: A wrong shape, dtype, device or probability, a scale or shift alone, or a map that asks for a
            gradient.

    Source: Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021, Eq. 3; Zhou et al., "Dynamic adapter meets
    prompt tuning", CVPR 2024, §3.2-3.3 and Eqs. 4-6.
    """
    checks.require_weights("weights", weights, MlpWeights)
    if norm is None and adapter is None:
        if branch is not None:
            raise ValueError(f"branch must be None without an adapter, got {type(branch).__name__}")
        return _alone(x, weights)
    norm = checks.require_weights("norm", norm, NormWeights)
    adapter = checks.require_weights("adapter", adapter, AdapterWeights)
    return _adapted(x, weights, norm, adapter, branch, _adapted_mlp.Options(norm_eps, eps, dropout_p), training, seed)


def _alone(x: Tensor, weights: MlpWeights) -> Tensor:
    checks.require_channels("x", x)
    x, weights = _checked(x, weights, x.shape[-1])
    is_plain = weights.scale1 is None and weights.scale2 is None
    # Compilers choose their own library for plain products.
    if library.use_fused_reference(x) or (is_plain and torch.compiler.is_compiling()):
        return _alone_reference(x, weights)
    rows = x.reshape(-1, x.shape[-1])
    if not is_plain:
        return _mlp.apply(rows, _mlp.filled(weights)).view(x.shape)
    w1, b1, w2, b2 = weights[:4]
    if torch.is_grad_enabled() and x.requires_grad:
        if w1.shape[0] == 0:
            return _alone_reference(x, weights)
        return frozen_linear(F.gelu(frozen_linear(x, w1, b1)), w2, b2)
    return _mlp.op(rows, *weights)[0].view(x.shape)


def _adapted(
    x: Tensor,
    weights: MlpWeights,
    norm: NormWeights,
    adapter: AdapterWeights,
    branch: Tensor | None,
    options: _adapted_mlp.Options,
    training: bool,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    checks.require_floating("x", x, 3)
    checks.require_channels("x", x)
    c = x.shape[-1]
    _check_norm(x, norm)
    first, weights = _checked(x, weights, c)
    first, *cast = library.autocast(first, *adapter)
    adapter = checked_weights(AdapterWeights(*cast), first, c, "adapter.")
    if branch is not None:
        checks.require_shape("branch", branch, x.shape)
        checks.require_floating("branch", branch, 3)
        if branch.device != x.device:
            raise ValueError(f"branch is on {branch.device}, but x is on {x.device}")
        if branch.dtype not in (x.dtype, first.dtype):
            raise ValueError(f"branch is {branch.dtype}, but x is {x.dtype}")
    for name, value in (("norm_eps", options.norm_eps), ("eps", options.eps)):
        checks.require_number(name, value, 0.0, "a finite number of at least 0")
    seed = _adapter.checked_seed(x, seed, options.dropout_p, training)
    if library.use_fused_reference(x):
        return _adapted_reference(x, weights, norm, adapter, branch, options, training, seed)
    options = _adapted_mlp.Options(*map(float, options))
    return _adapted_mlp.apply(x, branch, norm, _mlp.filled(weights), adapter, seed, options)


def _checked(x: Tensor, weights: MlpWeights, c: int) -> tuple[Tensor, MlpWeights]:
    """`x` and `weights`, under autocast in its type; a ValueError names a weight that is wrong."""
    for i in (1, 2):
        names = f"scale{i}", f"shift{i}"
        checks.require_together(names[0], getattr(weights, names[0]), names[1], getattr(weights, names[1]))
    given = {name: t for name, t in weights._asdict().items() if t is not None or name in ("w1", "b1", "w2", "b2")}
    h = checks.num_rows(weights.w1)
    shapes = {"w1": (h, c), "b1": (h,), "w2": (c, h), "b2": (c,), "scale1": (h,), "shift1": (h,)}
    for name, tensor in given.items():
        checks.require_shape(name, tensor, shapes.get(name, (c,)))
    x, *cast = library.autocast(x, *given.values())
    for name, tensor in zip(given, cast, strict=True):
        checks.require_same_kind(name, tensor, "x", x)
        if tensor.requires_grad and name in ("w1", "b1", "w2", "b2") and torch.is_grad_enabled():
            raise ValueError(f"{name} must be frozen, but it requires a gradient")
    return x, weights._replace(**dict(zip(given, cast, strict=True)))


def _check_norm(x: Tensor, norm: NormWeights) -> None:
    checks.require_together("norm.scale", norm.scale, "norm.shift", norm.shift)
    for name, tensor in norm._asdict().items():
        if tensor is None and name in ("scale", "shift"):
            continue
        checks.require_shape(f"norm.{name}", tensor, x.shape[-1:])
        checks.require_floating(f"norm.{name}", tensor, 1)
        mixed = x.dtype.itemsize == 2 and tensor.dtype == torch.float32  # as LayerNorm allows
        if tensor.device != x.device:
            raise ValueError(f"norm.{name} is on {tensor.device}, but x is on {x.device}")
        if tensor.dtype != x.dtype and not mixed and not torch.is_autocast_enabled(library.autocast_kind(x)):
            raise ValueError(f"norm.{name} is {tensor.dtype}, but x is {x.dtype}")


def frozen_mlp_reference(
    x: Tensor,
    weights: MlpWeights,
    *,
    norm: NormWeights | None = None,
    adapter: AdapterWeights | None = None,
    branch: Tensor | None = None,
    norm_eps: float = 1e-5,
    eps: float = 1e-5,
    dropout_p: float = 0.0,
    training: bool = False,
    seed: Tensor | None = None,
) -> Any:
    """The definition in plain PyTorch; arguments and result as in `frozen_mlp`."""
    if norm is None or adapter is None:
        return _alone_reference(x, weights)
    options = _adapted_mlp.Options(norm_eps, eps, dropout_p)
    return _adapted_reference(x, weights, norm, adapter, branch, options, training, seed)


def _alone_reference(x: Tensor, weights: MlpWeights) -> Tensor:
    w1, b1, w2, b2, scale1, shift1, scale2, shift2 = weights
    h = F.linear(x, w1, b1)
    h = F.gelu(h if scale1 is None or shift1 is None else scale1 * h + shift1)
    y = F.linear(h, w2, b2)
    return y if scale2 is None or shift2 is None else scale2 * y + shift2


def _adapted_reference(
    x: Tensor,
    weights: MlpWeights,
    norm: NormWeights,
    adapter: AdapterWeights,
    branch: Tensor | None,
    options: _adapted_mlp.Options,
    training: bool,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    x = x if branch is None else x + branch
    u = layer_norm_reference(x, *norm, eps=options.norm_eps).to(weights.w1.dtype)
    drop = {"dropout_p": options.dropout_p, "training": training, "seed": seed}
    a, prompt = adapter_reference(u, adapter, eps=options.eps, **drop, with_prompt=True)
    y = _alone_reference(u, weights) + a
    return y if branch is None else x + y, prompt
