"""Searches that the drop-in modules share: any number of coordinates, and more picks or neighbours than points."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pointpeft import ops


def farthest(points: Tensor, k: int, start: int | Tensor = 0, lengths: Tensor | None = None) -> Tensor:
    """Indices (B, k) of farthest points of `points` (B, N, D) for any D >= 1; otherwise `ops.furthest_point_sample`."""
    points = points.detach()
    if points.shape[-1] <= 3:
        return ops.furthest_point_sample(in_space(points), k, start=start, lengths=lengths)
    points = _wide(points)
    batch, n = points.shape[:2]
    distance = torch.full((batch, n), torch.inf, dtype=points.dtype, device=points.device)
    if lengths is not None:
        distance.masked_fill_(torch.arange(n, device=points.device) >= lengths[:, None], -1.0)
    pick = torch.as_tensor(start, device=points.device).expand(batch)
    idx = torch.empty(batch, k, dtype=torch.int64, device=points.device)
    for m in range(k):
        idx[:, m] = pick
        center = points.gather(1, pick[:, None, None].expand(-1, 1, points.shape[-1]))
        distance = torch.minimum(distance, (points - center).square().sum(-1))
        pick = distance.argmax(1)
    return idx


def first_within(query: Tensor, support: Tensor, radius: float, k: int) -> tuple[Tensor, Tensor]:
    """The first k of `support` (B, N, D) strictly within `radius` of each of `query` (B, M, D), for any k and D.

    Returns:
        Indices [B, M, k], and which of them were found: the rest repeat the first found one, or are 0.
    """
    query, support = _wide(query.detach()), _wide(support.detach())
    count = min(k, support.shape[1])
    if query.shape[-1] <= 3:
        idx = ops.ball_query(in_space(query), in_space(support), radius, count)
        # Indices ascend, so the first that does not is padding; the first one is padding where it is not within.
        offset = ops.gather(support, idx[..., :1]).squeeze(2) - query
        any_found = _sq_norm(offset) < _squared(radius, offset)
        is_within = torch.cat([any_found.unsqueeze(-1), idx[..., 1:] > idx[..., :-1]], -1)
        is_within = is_within.cumprod(-1).bool()
    else:
        offset = query.unsqueeze(2) - support.unsqueeze(1)
        inside = _sq_norm(offset) < _squared(radius, offset)
        n = support.shape[1]
        idx = torch.where(inside, torch.arange(n, device=query.device), n).sort(-1).values[..., :count]
        is_within = idx < n
        idx = torch.where(is_within, idx, torch.where(is_within[..., :1], idx[..., :1], 0))
    if count < k:
        idx = torch.cat([idx, idx[..., :1].expand(*idx.shape[:2], k - count)], -1)
        is_within = F.pad(is_within, (0, k - count))
    return idx, is_within


def in_space(points: Tensor) -> Tensor:
    """Points of up to three coordinates with zeros for the missing ones, which changes no distance."""
    return F.pad(points, (0, 3 - points.shape[-1])) if points.shape[-1] < 3 else points


def _wide(points: Tensor) -> Tensor:
    return points if points.dtype == torch.float64 else points.float()


def _squared(radius: float, like: Tensor) -> Tensor:
    return torch.tensor(radius, dtype=like.dtype, device=like.device).square()


def _sq_norm(offset: Tensor) -> Tensor:
    """Squared lengths, summed coordinate by coordinate as the kernels do, so that all agree on what is within."""
    total = torch.zeros(offset.shape[:-1], dtype=offset.dtype, device=offset.device)
    for coordinate in offset.unbind(-1):
        total = total + coordinate * coordinate
    return total
