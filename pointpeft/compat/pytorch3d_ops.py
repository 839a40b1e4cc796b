"""`pytorch3d.ops`: sample_farthest_points, knn_points, knn_gather and ball_query, padded with -1 as there."""

from collections import namedtuple

import torch
from torch import Tensor

from pointpeft import ops
from pointpeft.compat._search import farthest, first_within

_KNN = namedtuple("KNN", "dists idx knn")


def _valid(lengths: Tensor | None, points: Tensor) -> Tensor:
    if lengths is None:
        return torch.full((points.shape[0],), points.shape[1], dtype=torch.int64, device=points.device)
    return lengths.to(torch.int64)


def masked_gather(points: Tensor, idx: Tensor) -> Tensor:
    """`points` (N, P, D) at `idx` (N, K) or (N, P', K); zero where the index is -1."""
    return ops.gather(points, idx.clamp(min=0)).masked_fill(idx.lt(0).unsqueeze(-1), 0.0)


def sample_farthest_points(
    points: Tensor,
    lengths: Tensor | None = None,
    K: int | list[int] | Tensor = 50,
    random_start_point: bool = False,
) -> tuple[Tensor, Tensor]:
    """Farthest points (N, max K, D) and their indices, padded with 0 and -1 where K or the cloud is smaller."""
    batch = points.shape[0]
    valid = _valid(lengths, points)
    counts = torch.as_tensor(K, dtype=torch.int64, device=points.device).expand(batch)
    max_count = int(counts.max())
    start: int | Tensor = 0
    if random_start_point:
        start = (torch.rand(batch, device=points.device) * valid).long()
    # Asking a short cloud for more than it has picks points again; those picks are padding here.
    available = min(max_count, points.shape[1])
    ragged = torch.where(valid < available, points.shape[1], valid)
    padded = points
    if bool((valid < available).any()):
        rows = torch.arange(points.shape[1], device=points.device)
        repeated = rows.expand(batch, -1).where(rows < valid[:, None], torch.zeros_like(rows))
        padded = ops.gather(points, repeated)
    idx = farthest(padded, available, start, ragged)
    idx = idx.masked_fill(torch.arange(available, device=idx.device) >= torch.minimum(counts, valid)[:, None], -1)
    if available < max_count:
        idx = torch.nn.functional.pad(idx, (0, max_count - available), value=-1)
    return masked_gather(points, idx), idx


def knn_points(
    p1: Tensor,
    p2: Tensor,
    lengths1: Tensor | None = None,
    lengths2: Tensor | None = None,
    norm: int = 2,
    K: int = 1,
    version: int = -1,
    return_nn: bool = False,
    return_sorted: bool = True,
) -> _KNN:
    """K nearest of `p2` for each of `p1`: distances, int64 indices, and the points where `return_nn`; zeros as padding.

    Distances are squared for `norm` 2 and sums of absolute differences for 1. They always ascend.
    """
    if norm not in (1, 2):
        raise ValueError(f"norm must be 1 or 2, got {norm}")
    count = min(K, p2.shape[1])
    valid = _valid(lengths2, p2)
    # A cloud with fewer than `count` points has its padding moved behind every point, whichever the query.
    lengths = torch.where(valid < count, p2.shape[1], valid)
    support = _moved_away(p1, p2, valid) if bool((valid < count).any()) else p2
    dists, idx = ops.knn(p1, support, count, lengths=lengths) if norm == 2 else _manhattan(p1, support, count, lengths)
    if count < K:
        dists, idx = (torch.nn.functional.pad(t, (0, K - count)) for t in (dists, idx))
    missing = torch.arange(K, device=idx.device) >= valid[:, None, None]
    if lengths1 is not None:
        missing = missing | (torch.arange(p1.shape[1], device=idx.device) >= lengths1[:, None])[..., None]
    missing = missing.expand_as(idx)
    dists, idx = dists.masked_fill(missing, 0.0), idx.masked_fill(missing, 0)
    return _KNN(dists, idx, knn_gather(p2, idx, lengths2) if return_nn else None)


def knn_gather(x: Tensor, idx: Tensor, lengths: Tensor | None = None) -> Tensor:
    """`x` (N, M, U) at `idx` (N, L, K): (N, L, K, U), zero for neighbours beyond a cloud's length."""
    gathered = ops.gather(x, idx)
    beyond = torch.arange(idx.shape[2], device=idx.device) >= _valid(lengths, x)[:, None, None]
    return gathered.masked_fill(beyond.expand_as(idx).unsqueeze(-1), 0.0)


def ball_query(
    p1: Tensor,
    p2: Tensor,
    lengths1: Tensor | None = None,
    lengths2: Tensor | None = None,
    K: int = 500,
    radius: float = 0.2,
    return_nn: bool = True,
) -> _KNN:
    """The first K of `p2` within `radius` of each of `p1`; indices padded with -1, distances and points with 0."""
    support = p2 if lengths2 is None else _moved_away(p1, p2, _valid(lengths2, p2), beyond=radius)
    idx, is_within = first_within(p1, support, radius, K)
    if lengths1 is not None:
        is_within = is_within & (torch.arange(p1.shape[1], device=p1.device) < lengths1[:, None]).unsqueeze(2)
    dists = (p1.unsqueeze(2) - ops.gather(p2, idx)).square().sum(-1).masked_fill(~is_within, 0.0)
    idx = idx.masked_fill(~is_within, -1)
    return _KNN(dists, idx, masked_gather(p2, idx) if return_nn else None)


def _moved_away(query: Tensor, support: Tensor, valid: Tensor, beyond: float = 0.0) -> Tensor:
    """`support` with what lies behind its lengths moved farther from every query than any point, and than `beyond`."""
    reach = torch.stack([query.detach().abs().amax(), support.detach().abs().amax()]).amax() + beyond + 1.0
    padding = torch.arange(support.shape[1], device=support.device) >= valid[:, None]
    return torch.where(padding.unsqueeze(-1), 4.0 * reach, support)


def _manhattan(p1: Tensor, p2: Tensor, k: int, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The k least sums of absolute differences, ascending, of equal ones the lower index first, and their indices."""
    with torch.no_grad():
        distance = p1.new_zeros(*p1.shape[:2], p2.shape[1])
        for a, b in zip(p1.unbind(-1), p2.unbind(-1), strict=True):
            distance += (a[:, :, None] - b[:, None]).abs()
        distance.masked_fill_(torch.arange(p2.shape[1], device=p2.device) >= lengths[:, None, None], torch.inf)
        idx = distance.sort(dim=-1, stable=True).indices[..., :k].contiguous()
    return (p1.unsqueeze(2) - ops.gather(p2, idx)).abs().sum(-1), idx
