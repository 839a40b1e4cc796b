"""Inverse-distance interpolation of features."""

from typing import Literal

import torch
from torch import Tensor

from pointpeft.ops.core import checks, library
from pointpeft.ops.points.aggregate_neighbors import aggregate_neighbors, aggregate_neighbors_reference
from pointpeft.ops.points.knn import knn, knn_reference


def interpolate(
    query_xyz: Tensor,
    support_xyz: Tensor,
    support_features: Tensor,
    k: int | Literal["all"] = 3,
    eps: float = 1e-8,
) -> Tensor:
    """Carries features from support points to queries: the mean of the k nearest, weighted by inverse squared distance.

    Concretely, `out[b, m] = Σ w_j f_j / Σ w_j` with w_j = 1 / (d_j² + eps) over the k support points j nearest to query
    m, of equal distances the lower index first; "all" takes every support point. Weights are computed in float32, for
    float64 coordinates in float64. Differentiable in the features and, through the weights, in both coordinates, so
    that prompts can learn where they stand; which points are the nearest is data.

    Args:
        query_xyz: Coordinates to interpolate at, any strides. [B, M, 3]
        support_xyz: Coordinates of the features, of the dtype and device of `query_xyz`, any strides. [B, N, 3]
        support_features: Features, any float dtype, any strides. [B, N, C]
        k: K, how many neighbours, 1 <= K <= N, or "all".
        eps: Added to each squared distance, in squared units of the coordinates; > 0.

    Returns:
        Features at the queries, contiguous, in the dtype of `support_features`. [B, M, C]

    Raises:
        ValueError: A wrong shape, dtype, device or value; a non-finite coordinate (on CUDA only under
            POINTPEFT_CHECK=1).

    Source: PointNet++ (2017), §3.4, with k = 3; with "all", the propagation of Point-PEFT's geometry-aware adapter.
    """
    checks.require_floating("query_xyz", query_xyz, 3, 3)
    checks.require_floating("support_xyz", support_xyz, 3, 3)
    checks.require_floating("support_features", support_features, 3)
    checks.require_same_kind("support_xyz", support_xyz, "query_xyz", query_xyz)
    if support_xyz.shape[0] != query_xyz.shape[0]:
        raise ValueError(
            f"support_xyz must have B = {query_xyz.shape[0]} clouds like query_xyz, got {support_xyz.shape[0]}"
        )
    if support_features.shape[:2] != support_xyz.shape[:2]:
        raise ValueError(
            f"support_features must have shape {(*support_xyz.shape[:2], 'C')} to go with support_xyz, "
            f"got {tuple(support_features.shape)}"
        )
    if support_features.device != support_xyz.device:
        raise ValueError(
            f"support_features is on {support_features.device}, but support_xyz is on {support_xyz.device}"
        )
    n = support_xyz.shape[1]
    if k != "all":
        if isinstance(k, str):
            raise ValueError(f'k must be an int or "all", got {k!r}')
        checks.require_count("k", k, n, "N")
    elif n == 0:
        raise ValueError("support_xyz must have at least 1 point, got N = 0")
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 < eps < float("inf"):
        raise ValueError(f"eps must be a finite number above 0, got {eps!r}")
    checks.require_finite("query_xyz", query_xyz)
    checks.require_finite("support_xyz", support_xyz)
    if library.use_reference(query_xyz):
        return interpolate_reference(query_xyz, support_xyz, support_features, k, eps)
    if k == "all":
        return _weigh_all(_inverse(_all_sq_distances(query_xyz, support_xyz), eps), support_features)
    sq_distance, idx = knn(query_xyz, support_xyz, k)
    return aggregate_neighbors(support_features, idx, "weighted", _inverse(sq_distance, eps))


def interpolate_reference(
    query_xyz: Tensor,
    support_xyz: Tensor,
    support_features: Tensor,
    k: int | Literal["all"] = 3,
    eps: float = 1e-8,
) -> Tensor:
    """The definition in plain PyTorch; arguments and result as in `interpolate`."""
    sq_distance, idx = knn_reference(query_xyz, support_xyz, support_xyz.shape[1] if k == "all" else k)
    return aggregate_neighbors_reference(support_features, idx, "weighted", _inverse(sq_distance, eps))


def _inverse(sq_distance: Tensor, eps: float) -> Tensor:
    weights = (sq_distance + eps).reciprocal()
    return weights / weights.sum(-1, keepdim=True)


def _all_sq_distances(query: Tensor, support: Tensor) -> Tensor:
    # By coordinates: the matrix product |q|² - 2 q·s + |s|² would lose the small distances, which weigh most.
    q, s = (query, support) if query.dtype == torch.float64 else (query.float(), support.float())
    sq_distance = (q[:, :, None, 0] - s[:, None, :, 0]).square()
    for axis in (1, 2):
        sq_distance = sq_distance + (q[:, :, None, axis] - s[:, None, :, axis]).square()
    return sq_distance


def _weigh_all(weights: Tensor, features: Tensor) -> Tensor:
    # With every point a neighbour the pooling is a matrix product; autocast must not round its weights.
    with torch.autocast(library.autocast_kind(features), enabled=False):
        return (weights @ features.to(weights.dtype)).to(features.dtype)
