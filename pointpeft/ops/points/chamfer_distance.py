"""Chamfer distance of two batches of clouds."""

import torch
from torch import Tensor

from pointpeft.ops.core import checks, derivatives, library
from pointpeft.ops.points.gather import sum_rows, take_rows


def chamfer_distance(a: Tensor, b: Tensor, norm: int = 2) -> Tensor:
    """How far two clouds are from each other: the mean over points of the distance to the nearest point of the other.

    With d(p, C) the distance of p to its nearest point of C, `norm=2` is mean d(a, b)² + mean d(b, a)², and `norm=1` is
    (mean d(a, b) + mean d(b, a)) / 2; the means run over the points of all clouds. Differentiable in `a` and `b`: a
    point moves along the line to its nearest one, of equally near ones that of the lowest index. Where two points
    coincide, d has no gradient and `norm=1` takes zero, not the NaN that a bare square root gives. The gradients are
    summed in a fixed order, on CUDA too.

    Args:
        a: Coordinates, any strides; distances are computed in float32, for float64 in float64. [B, N, 3]
        b: Coordinates in the dtype and on the device of `a`. [B, M, 3]
        norm: 2 for squared distances, 1 for distances.

    Returns:
        The distance, float32, or float64 for float64; NaN for B = 0, as for any mean over nothing. []

    Raises:
        ValueError: A wrong shape, dtype, device or value; a non-finite coordinate (on CUDA only under
            POINTPEFT_CHECK=1; otherwise such a point is nobody's nearest, and the result is not finite).

    Source: the `ChamferDistanceL2` and `ChamferDistanceL1` that Point-MAE (2022) is trained with; Fan et al., "A point
        set generation network", 2017, eq. 1.
    """
    checks.require_floating("a", a, 3, 3)
    checks.require_floating("b", b, 3, 3)
    checks.require_same_kind("b", b, "a", a)
    if a.shape[0] != b.shape[0]:
        raise ValueError(f"b must have as many clouds as a, {a.shape[0]}, got {b.shape[0]}")
    if a.shape[1] == 0 or b.shape[1] == 0:
        raise ValueError(f"a and b must have at least one point, got {a.shape[1]} and {b.shape[1]}")
    if norm not in (1, 2):
        raise ValueError(f"norm must be 1 or 2, got {norm!r}")
    if library.use_reference(a):
        return chamfer_distance_reference(a, b, norm)
    if a.device.type != "cpu":  # the CPU kernel looks by itself
        checks.require_finite("a", a)
        checks.require_finite("b", b)
    sq_a, _, sq_b, _ = library.call(torch.ops.pointpeft.chamfer_distance, a, b)
    return _mean(sq_a, sq_b, norm)


def chamfer_distance_reference(a: Tensor, b: Tensor, norm: int = 2) -> Tensor:
    """The definition in plain PyTorch; arguments and result as in `chamfer_distance`."""
    checks.require_finite("a", a)
    checks.require_finite("b", b)
    if a.dtype != torch.float64:
        a, b = a.float(), b.float()
    dx, dy, dz = (a[:, :, None] - b[:, None]).unbind(-1)
    sq_distance = dx * dx + dy * dy + dz * dz  # (B, N, M)
    return _mean(_first_smallest(sq_distance), _first_smallest(sq_distance.transpose(1, 2)), norm)


def _first_smallest(sq_distance: Tensor) -> Tensor:
    return sq_distance.gather(2, sq_distance.detach().argmin(2, keepdim=True))[..., 0]


def _mean(sq_a: Tensor, sq_b: Tensor, norm: int) -> Tensor:
    if norm == 2:
        return sq_a.mean() + sq_b.mean()
    return (_root(sq_a).mean() + _root(sq_b).mean()) / 2


def _root(sq_distance: Tensor) -> Tensor:
    """The square root, with gradient 0 at 0: there the root is taken of 1, and thrown away."""
    coincide = sq_distance == 0
    return sq_distance.masked_fill(coincide, 1).sqrt().masked_fill(coincide, 0)


@library.register_fake("chamfer_distance")
def _fake(a, b):
    wide = torch.float64 if a.dtype == torch.float64 else torch.float32
    outputs = [a.new_empty(p.shape[:2], dtype=dtype) for p in (a, b) for dtype in (wide, torch.int64)]
    return tuple(outputs)


@library.register_fake("chamfer_distance_backward")
def _fake_backward(grad_a, grad_b, a, b, idx_a, idx_b):
    return a.new_empty(a.shape), b.new_empty(b.shape)


def _save(ctx, inputs, output):
    _, idx_a, _, idx_b = output
    ctx.save_for_backward(*inputs, idx_a, idx_b)


def _backward(ctx, grad_a, _idx_a, grad_b, _idx_b):
    return derivatives.call(torch.ops.pointpeft.chamfer_distance_backward.default, grad_a, grad_b, *ctx.saved_tensors)


def _offsets(p: Tensor, q: Tensor, idx: Tensor, dtype: torch.dtype) -> Tensor:
    return p.to(dtype) - take_rows(q.to(dtype), idx)


def _formula(inputs, output):
    a, b = inputs
    sq_a, idx_a, sq_b, idx_b = output
    to_b, to_a = _offsets(a, b, idx_a, sq_a.dtype), _offsets(b, a, idx_b, sq_b.dtype)
    return to_b.square().sum(-1), idx_a, to_a.square().sum(-1), idx_b


def _backward_formula(inputs, _):
    grad_a, grad_b, a, b, idx_a, idx_b = inputs
    step_a = 2 * grad_a[..., None] * _offsets(a, b, idx_a, grad_a.dtype)
    step_b = 2 * grad_b[..., None] * _offsets(b, a, idx_b, grad_b.dtype)
    to_a = step_a - sum_rows(step_b, idx_b, a.shape[1])
    return to_a.to(a.dtype), (step_b - sum_rows(step_a, idx_a, b.shape[1])).to(b.dtype)


library.register_autograd("chamfer_distance", _formula, _backward, _save)
library.register_autograd("chamfer_distance_backward", _backward_formula)
