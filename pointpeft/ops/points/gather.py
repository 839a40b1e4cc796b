"""Rows of a cloud by index."""

import torch
from torch import Tensor

from pointpeft.ops.core import checks, derivatives, library


def gather(features: Tensor, idx: Tensor) -> Tensor:
    """Takes rows of each cloud by index: points, tokens, features; also neighbourhoods of them (grouping).

    Concretely, `out[b, ..., :] == features[b, idx[b, ...], :]`. Differentiable in `features`: the gradients of a row
    that was taken several times are summed in at least float32; on the CPU always in the same order, on CUDA where
    `torch.are_deterministic_algorithms_enabled()`.

    Args:
        features: Rows of any float, integer or bool dtype, any strides. [B, N, C]
        idx: Which rows, 0 <= idx < N; int64, any number of dimensions behind the first. [B, ...]

    Returns:
        The rows, contiguous, in the dtype of `features`. [B, ..., C]

    Raises:
        ValueError: A wrong shape, dtype or device; an index out of range (on CUDA only under POINTPEFT_CHECK=1;
            otherwise such an index gives zeros).

    Source: `group_points` and `gather_points` of PointNet++ (2017), in row-major layout.
    """
    if not isinstance(features, Tensor) or features.dim() != 3 or features.is_complex():
        got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"features must be a real tensor (B, N, C), got {got}")
    if not isinstance(idx, Tensor) or idx.dtype != torch.int64:
        raise ValueError(f"idx must be an int64 tensor, got {getattr(idx, 'dtype', type(idx).__name__)}")
    if idx.dim() == 0 or idx.shape[0] != features.shape[0]:
        raise ValueError(f"idx must have shape ({features.shape[0]}, ...), got {tuple(idx.shape)}")
    if idx.device != features.device:
        raise ValueError(f"idx is on {idx.device}, but features is on {features.device}")
    if idx.device.type != "cpu":  # the CPU kernel looks by itself
        _in_range(idx, features.shape[1])
    if library.use_reference(features):
        return gather_reference(features, idx)
    return library.call(torch.ops.pointpeft.gather, features, idx)


def gather_reference(features: Tensor, idx: Tensor) -> Tensor:
    """The definition in plain PyTorch; arguments and result as in `gather`."""
    _in_range(idx, features.shape[1])
    batch, channels = features.shape[0], features.shape[2]
    rows = idx.reshape(batch, idx.shape[1:].numel())
    return features.gather(1, rows[..., None].expand(-1, -1, channels)).view(*idx.shape, channels)


def scatter_rows(grad: Tensor, idx: Tensor, n: int) -> Tensor:
    """Sums rows (B, ..., C) into the rows `idx` of (B, n, C): the backward of `gather`."""
    if grad.is_cuda and torch.are_deterministic_algorithms_enabled():
        rows = idx.reshape(idx.shape[0], idx.shape[1:].numel())
        op = torch.ops.pointpeft.gather_backward_sorted.default
        return derivatives.call(op, grad, *rows.sort(dim=1, stable=True), n)
    return derivatives.call(torch.ops.pointpeft.gather_backward.default, grad, idx, n)


def take_rows(features: Tensor, idx: Tensor) -> Tensor:
    """`gather` in plain PyTorch for an `idx` that a kernel has taken: an index out of range gives zeros, as on CUDA."""
    n, channels = features.shape[1:]
    rows = idx.reshape(idx.shape[0], idx.shape[1:].numel())[..., None].expand(-1, -1, channels)
    rows_of_features = features.gather(1, rows.clamp(0, max(n - 1, 0))).masked_fill((rows < 0) | (rows >= n), 0)
    return rows_of_features.view(*idx.shape, channels)


def sum_rows(rows: Tensor, idx: Tensor, n: int) -> Tensor:
    """`scatter_rows` in plain PyTorch; `idx` (B, ...) or one index a value, (B, ..., C), of rows (B, ..., C)."""
    channels = rows.shape[-1]
    flat = rows.reshape(rows.shape[0], rows.shape[1:-1].numel(), channels)
    idx = (idx if idx.dim() == rows.dim() else idx[..., None].expand(rows.shape)).reshape(flat.shape)
    flat = flat.masked_fill((idx < 0) | (idx >= n), 0).to(torch.promote_types(rows.dtype, torch.float32))
    total = flat.new_zeros(flat.shape[0], n, channels).scatter_add(1, idx.clamp(0, max(n - 1, 0)), flat)
    return total.to(rows.dtype)


def _in_range(idx: Tensor, n: int) -> None:
    if checks.looks_at_values(idx) and bool(((idx < 0) | (idx >= n)).any()):
        bad = idx[(idx < 0) | (idx >= n)][0]
        raise ValueError(f"idx must be between 0 and N - 1 = {n - 1}, got {int(bad)}")


@library.register_fake("gather")
def _fake(features, idx):
    return features.new_empty((*idx.shape, features.shape[2]))


@library.register_fake("gather_backward")
def _fake_backward(grad, idx, n):
    return grad.new_empty((idx.shape[0], n, grad.shape[-1]))


@library.register_fake("gather_backward_sorted")
def _fake_backward_sorted(grad, sorted, row_of, n):
    return grad.new_empty((sorted.shape[0], n, grad.shape[-1]))


def _save(ctx, inputs, output):
    features, idx = inputs
    ctx.save_for_backward(idx)
    ctx.n = features.shape[1]


def _backward(ctx, grad):
    return scatter_rows(grad, ctx.saved_tensors[0], ctx.n), None


def _sorted_formula(inputs, _):
    grad, sorted, row_of, n = inputs
    return sum_rows(take_rows(grad.reshape(*row_of.shape, grad.shape[-1]), row_of), sorted, n)


library.register_autograd("gather", lambda inputs, _: take_rows(*inputs), _backward, _save)
library.register_autograd("gather_backward", lambda inputs, _: sum_rows(*inputs))
library.register_autograd("gather_backward_sorted", _sorted_formula)
