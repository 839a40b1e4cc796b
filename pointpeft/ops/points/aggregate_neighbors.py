"""Pooling over neighbourhoods without gathering them."""

from typing import Literal

import torch
from torch import Tensor

from pointpeft.ops.core import checks, derivatives, library
from pointpeft.ops.points.gather import sum_rows, take_rows

MODES = ("max", "mean", "sum", "weighted")
"""The ways to pool; the compiled kernels know a mode by its place here."""


def aggregate_neighbors(
    features: Tensor,
    idx: Tensor,
    mode: Literal["max", "mean", "sum", "weighted"] = "max",
    weights: Tensor | None = None,
) -> Tensor:
    """Gathers the neighbours of each group and pools them in one pass, without the (B, G, S, C) tensor between.

    Concretely, `out[b, g, c]` is the maximum, mean, sum or weighted sum Σ weights[b, g, s] features[b, idx[b, g, s], c]
    over s. Sums run over s in order, in float32, for float64 in float64. Differentiable in `features` and `weights`;
    the gradient of a maximum goes to its first place; a gradient has the same bits on every run, on CUDA too. The
    backward keeps idx and, for the maximum, one byte an output (four where S > 256); features only where weights learn.

    Args:
        features: Tokens or points, any strides. [B, N, C]
        idx: Neighbours of each group, 0 <= idx < N, S >= 1. int64, [B, G, S]
        mode: How to pool.
        weights: For mode "weighted" alone, any float dtype; not normalised here. [B, G, S]

    Returns:
        The pooled neighbourhoods, contiguous, in the dtype of `features`. [B, G, C]

    Raises:
        ValueError: A wrong shape, dtype, device or mode; an index out of range (on CUDA only under POINTPEFT_CHECK=1;
            otherwise such a neighbour counts as zeros).

    Source: the pooling of PointNet++ (2017), §3.2, and of the geometry-aware adapter of Point-PEFT (2024).
    """
    checks.require_floating("features", features, 3)
    if not isinstance(idx, Tensor) or idx.dtype != torch.int64:
        raise ValueError(f"idx must be an int64 tensor, got {getattr(idx, 'dtype', type(idx).__name__)}")
    if idx.dim() != 3 or idx.shape[0] != features.shape[0] or idx.shape[2] == 0:
        raise ValueError(f"idx must have shape ({features.shape[0]}, G, S) with S >= 1, got {tuple(idx.shape)}")
    if idx.device != features.device:
        raise ValueError(f"idx is on {idx.device}, but features is on {features.device}")
    if mode not in MODES:
        raise ValueError(f"mode must be max, mean, sum or weighted, got {mode!r}")
    if mode == "weighted":
        if weights is None:
            raise ValueError(f"weights must be given for mode 'weighted', with shape {tuple(idx.shape)}")
        checks.require_floating("weights", weights, 3)
        if weights.shape != idx.shape:
            raise ValueError(f"weights must have the shape {tuple(idx.shape)} of idx, got {tuple(weights.shape)}")
        if weights.device != features.device:
            raise ValueError(f"weights is on {weights.device}, but features is on {features.device}")
    elif weights is not None:
        got = f"shape {tuple(weights.shape)}" if isinstance(weights, Tensor) else type(weights).__name__
        raise ValueError(f"weights must be None for mode {mode!r}, got {got}")
    if idx.device.type != "cpu":  # the CPU kernel looks by itself
        _in_range(idx, features.shape[1])
    if library.use_reference(features):
        return aggregate_neighbors_reference(features, idx, mode, weights)
    if weights is not None:
        weights = weights.to(_accumulate(features))
    keep_argmax = mode == "max" and features.requires_grad and torch.is_grad_enabled()
    op = torch.ops.pointpeft.aggregate_neighbors
    return library.call(op, features, idx, weights, MODES.index(mode), keep_argmax)[0]


def aggregate_neighbors_reference(
    features: Tensor,
    idx: Tensor,
    mode: Literal["max", "mean", "sum", "weighted"] = "max",
    weights: Tensor | None = None,
) -> Tensor:
    """The definition in plain PyTorch; arguments and result as in `aggregate_neighbors`."""
    _in_range(idx, features.shape[1])
    (batch, groups, s), channels = idx.shape, features.shape[2]
    rows = idx.reshape(batch, groups * s)[..., None].expand(-1, -1, channels)
    neighbours = features.to(_accumulate(features)).gather(1, rows).view(batch, groups, s, channels)
    return _pool(neighbours, mode, weights).to(features.dtype)


def _pool(neighbours: Tensor, mode: str, weights: Tensor | None) -> Tensor:
    """Neighbourhoods (B, G, S, C) pooled over S."""
    if mode == "max":
        return neighbours.max(2).values  # of equal ones the first
    if weights is not None:  # mode is "weighted"
        return (neighbours * weights.to(neighbours.dtype)[..., None]).sum(2)
    return neighbours.mean(2) if mode == "mean" else neighbours.sum(2)


def _accumulate(features: Tensor) -> torch.dtype:
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def _in_range(idx: Tensor, n: int) -> None:
    if checks.looks_at_values(idx) and bool(((idx < 0) | (idx >= n)).any()):
        bad = idx[(idx < 0) | (idx >= n)][0]
        raise ValueError(f"idx must be between 0 and N - 1 = {n - 1}, got {int(bad)}")


@library.register_fake("aggregate_neighbors")
def _fake(features, idx, weights, mode, keep_argmax):
    (batch, groups, s), channels = idx.shape, features.shape[2]
    rows = batch if keep_argmax and MODES[mode] == "max" else 0
    argmax = features.new_empty((rows, groups, channels), dtype=torch.uint8 if s <= 256 else torch.int32)
    return features.new_empty((batch, groups, channels)), argmax


@library.register_fake("aggregate_neighbors_backward")
def _fake_backward(grad, idx, weights, argmax, sorted, row_of, n, mode):
    return grad.new_empty((grad.shape[0], n, grad.shape[2]))


@library.register_fake("aggregate_neighbors_backward_weights")
def _fake_backward_weights(grad, features, idx):
    return grad.new_empty(idx.shape, dtype=_accumulate(grad))


def _save(ctx, inputs, output):
    features, idx, weights, mode, keep_argmax = inputs
    argmax = output[1]
    ctx.mark_non_differentiable(argmax)
    ctx.set_materialize_grads(False)
    learns_weights = weights is not None and ctx.needs_input_grad[2]
    ctx.save_for_backward(idx, weights, argmax if keep_argmax else None, features if learns_weights else None)
    ctx.n, ctx.mode = features.shape[1], mode


def _backward(ctx, grad, _):
    idx, weights, argmax, features = ctx.saved_tensors
    if grad is None:
        return None, None, None, None, None
    grad_features = grad_weights = None
    if ctx.needs_input_grad[0]:
        if MODES[ctx.mode] == "max" and argmax is None:
            raise RuntimeError("aggregate_neighbors was called with keep_argmax=False and cannot be differentiated")
        # The inverse index: by it a CUDA thread finds all that its target sent out, in order.
        in_order = idx.flatten(1).sort(dim=1, stable=True) if grad.is_cuda else (None, None)
        op = torch.ops.pointpeft.aggregate_neighbors_backward.default
        grad_features = derivatives.call(op, grad, idx, weights, argmax, *in_order, ctx.n, ctx.mode)
    if features is not None:
        op = torch.ops.pointpeft.aggregate_neighbors_backward_weights.default
        grad_weights = derivatives.call(op, grad, features, idx)
    return grad_features, None, grad_weights, None, None


def _formula(inputs, output):
    features, idx, weights, mode, _ = inputs
    neighbours = take_rows(features.to(_accumulate(features)), idx)
    return _pool(neighbours, MODES[mode], weights).to(features.dtype), output[1]


def _backward_formula(inputs, _):
    grad, idx, weights, argmax, _, _, n, mode = inputs
    wide = grad.to(_accumulate(grad))
    if MODES[mode] == "max":
        return sum_rows(wide, idx.gather(2, argmax.to(torch.int64)), n).to(grad.dtype)
    shares = wide[:, :, None].expand(-1, -1, idx.shape[2], -1)
    if weights is not None:
        shares = shares * weights.to(wide.dtype)[..., None]
    elif MODES[mode] == "mean":
        shares = shares / idx.shape[2]
    return sum_rows(shares, idx, n).to(grad.dtype)


def _backward_weights_formula(inputs, _):
    grad, features, idx = inputs
    wide = _accumulate(grad)
    return (grad.to(wide)[:, :, None] * take_rows(features.to(wide), idx)).sum(-1)


library.register_autograd("aggregate_neighbors", _formula, _backward, _save)
library.register_autograd("aggregate_neighbors_backward", _backward_formula)
library.register_autograd("aggregate_neighbors_backward_weights", _backward_weights_formula)
