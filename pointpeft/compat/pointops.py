"""`pointops`: sampling, neighbours, grouping and interpolation of clouds laid end to end, told apart by their ends.

`offset` holds the end of each cloud: sizes 5, 3 give [5, 8]. Answered are the names of Pointcept's library and the
older ones of Point Transformer (`furthestsampling`, `knnquery`, `queryandgroup`). Indices are int32, as there.
Neighbours are ordered by distance, ties by index; there the order of a ball query is that of an unfinished heap, and
where more than `nsample` points lie within, its distances are indices.
"""

from typing import Any

import torch
from torch import Tensor

from pointpeft import ops
from pointpeft.compat._search import farthest

__all__ = [
    "aggregation",
    "attention_fusion_step",
    "attention_relation_step",
    "ball_query",
    "ball_query_and_group",
    "ballquery",
    "batch2offset",
    "farthest_point_sampling",
    "furthestsampling",
    "grouping",
    "grouping2",
    "interpolation",
    "interpolation2",
    "knn_query",
    "knn_query_and_group",
    "knnquery",
    "offset2batch",
    "query_and_group",
    "queryandgroup",
    "random_ball_query",
    "subtraction",
]

NONE = -1  # index of a neighbour that a cloud does not have
FAR = 1e5  # its distance: the root of 1e10


def farthest_point_sampling(xyz: Tensor, offset: Tensor, new_offset: Tensor) -> Tensor:
    """Indices of farthest points, from the first of each cloud on. (n, 3), (b), (b) -> int32 (new_offset[-1])"""
    picks = []
    for (first, end), (new_first, new_end) in zip(_ranges(offset), _ranges(new_offset), strict=True):
        if new_end == new_first:
            continue
        if end == first:
            raise ValueError(f"new_offset must ask for no points of an empty cloud, got {new_end - new_first}")
        picks.append(farthest(xyz[None, first:end], new_end - new_first)[0] + first)
    return torch.cat(picks).int() if picks else torch.empty(0, dtype=torch.int32, device=xyz.device)


furthestsampling = farthest_point_sampling


def knn_query(
    nsample: int, xyz: Tensor, offset: Tensor, new_xyz: Tensor | None = None, new_offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The nearest of `xyz` (n, 3) to each of `new_xyz` (m, 3) within its cloud, nearest first.

    Returns:
        int32 (m, nsample), -1 where a cloud has fewer points; distances, not squared (m, nsample), 1e5 there.
    """
    if new_xyz is None or new_offset is None:
        new_xyz, new_offset = xyz, offset
    idx = torch.full((new_xyz.shape[0], nsample), NONE, dtype=torch.int32, device=xyz.device)
    distance = torch.full(idx.shape, FAR, dtype=torch.float32, device=xyz.device)
    for (first, end), (new_first, new_end) in zip(_ranges(offset), _ranges(new_offset), strict=True):
        count = min(nsample, end - first)
        if count and new_end > new_first:
            query, support = new_xyz[None, new_first:new_end].detach(), xyz[None, first:end].detach()
            squared, found = ops.knn(query, support, count)
            idx[new_first:new_end, :count] = found[0].int() + first
            distance[new_first:new_end, :count] = squared[0].sqrt()
    return idx, distance


def knnquery(
    nsample: int, xyz: Tensor, new_xyz: Tensor | None, offset: Tensor, new_offset: Tensor
) -> tuple[Tensor, Tensor]:
    """The older `knn_query`: where a cloud has fewer points, the place is filled with its first one."""
    idx, distance = knn_query(nsample, xyz, offset, xyz if new_xyz is None else new_xyz, new_offset)
    starts = torch.cat([new_offset.new_zeros(1), new_offset[:-1]])
    sizes = new_offset - starts
    first = torch.cat([offset.new_zeros(1), offset[:-1]]).int().repeat_interleave(sizes.long())
    return torch.where(idx == NONE, first[:, None].to(idx.device), idx), distance


def ball_query(
    nsample: int,
    max_radius: float,
    min_radius: float,
    xyz: Tensor,
    offset: Tensor,
    new_xyz: Tensor | None = None,
    new_offset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Points of the shell min_radius <= d < max_radius, and what lies on the centre (d² <= 1e-5), by distance.

    Of more than `nsample`, every (count / nsample)-th; where there are fewer, -1 at the distance 1e5.

    Returns:
        int32 (m, nsample); distances, not squared (m, nsample)
    """
    return _balls(nsample, max_radius, min_radius, xyz, offset, new_xyz, new_offset, is_random=False)


ballquery = ball_query


def random_ball_query(
    nsample: int,
    max_radius: float,
    min_radius: float,
    xyz: Tensor,
    offset: Tensor,
    new_xyz: Tensor | None = None,
    new_offset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`nsample` points of the shell, drawn at random; otherwise as `ball_query`."""
    return _balls(nsample, max_radius, min_radius, xyz, offset, new_xyz, new_offset, is_random=True)


def grouping(*args: Any, **kwargs: Any) -> Tensor:
    """Features (and offsets to centres) of neighbours: Pointcept's (idx, feat, xyz, new_xyz=None, with_xyz=False).

    The older form is (feat, idx). An index of -1 gives zeros.

    Returns:
        (m, nsample, c), with `with_xyz` (m, nsample, 3 + c)
    """
    if len(args) + len(kwargs) == 2:
        return grouping2(*args, **kwargs)
    return _grouping(*args, **kwargs)


def _grouping(idx: Tensor, feat: Tensor, xyz: Tensor, new_xyz: Tensor | None = None, with_xyz: bool = False) -> Tensor:
    features = grouping2(feat, idx)
    if not with_xyz:
        return features
    centers = (xyz if new_xyz is None else new_xyz).unsqueeze(1)
    return torch.cat([(grouping2(xyz, idx) - centers).masked_fill((idx == NONE)[..., None], 0), features], -1)


def grouping2(input: Tensor, idx: Tensor) -> Tensor:
    """Rows of `input` (n, c) at `idx` (m, nsample), zeros where it is -1. -> (m, nsample, c)"""
    is_none = idx < 0
    rows = ops.gather(input.unsqueeze(0), idx.long().masked_fill(is_none, 0).unsqueeze(0))[0]
    return rows.masked_fill(is_none[..., None], 0)


def knn_query_and_group(
    feat: Tensor,
    xyz: Tensor,
    offset: Tensor | None = None,
    new_xyz: Tensor | None = None,
    new_offset: Tensor | None = None,
    idx: Tensor | None = None,
    nsample: int | None = None,
    with_xyz: bool = False,
) -> tuple[Tensor, Tensor]:
    """`knn_query` unless `idx` is given, then `grouping`; the groups and `idx`."""
    if idx is None:
        if nsample is None or offset is None:
            raise ValueError("nsample and offset must be given where idx is not")
        idx, _ = knn_query(nsample, xyz, offset, new_xyz, new_offset)
    return _grouping(idx, feat, xyz, new_xyz, with_xyz), idx


def ball_query_and_group(
    feat: Tensor,
    xyz: Tensor,
    offset: Tensor | None = None,
    new_xyz: Tensor | None = None,
    new_offset: Tensor | None = None,
    idx: Tensor | None = None,
    max_radio: float | None = None,
    min_radio: float = 0,
    nsample: int | None = None,
    with_xyz: bool = False,
) -> tuple[Tensor, Tensor]:
    """`ball_query` unless `idx` is given, then `grouping`; the groups and `idx`. The radii are called so there."""
    if idx is None:
        if nsample is None or offset is None or max_radio is None:
            raise ValueError("nsample, offset and max_radio must be given where idx is not")
        idx, _ = ball_query(nsample, max_radio, min_radio, xyz, offset, new_xyz, new_offset)
    return _grouping(idx, feat, xyz, new_xyz, with_xyz), idx


def query_and_group(
    nsample: int,
    xyz: Tensor,
    new_xyz: Tensor | None,
    feat: Tensor,
    idx: Tensor | None,
    offset: Tensor,
    new_offset: Tensor,
    dilation: int = 0,
    with_feat: bool = True,
    with_xyz: bool = True,
) -> Tensor | tuple[Tensor, Tensor]:
    """Each (dilation + 1)-th of the nearest, grouped; a small cloud is spread over `nsample`.

    Returns:
        (m, nsample, 3 + c) or, without `with_xyz`, (m, nsample, c); and the indices, alone without `with_feat`.
    """
    new_xyz = xyz if new_xyz is None else new_xyz
    if idx is None:
        wanted = 1 + (nsample - 1) * (dilation + 1)
        nearest, _ = knn_query(wanted, xyz, offset, new_xyz, new_offset)
        parts = []
        for (first, end), (new_first, new_end) in zip(_ranges(offset), _ranges(new_offset), strict=True):
            step = dilation + 1.0
            if end - first < wanted:
                step = (end - first - 1) / max(nsample - 1, 1)
            parts.append(nearest[new_first:new_end, [int(step * i) for i in range(nsample)]])
        idx = torch.cat(parts)
    if not with_feat:
        return idx
    return _grouping(idx, feat, xyz, new_xyz, with_xyz), idx


def queryandgroup(
    nsample: int,
    xyz: Tensor,
    new_xyz: Tensor | None,
    feat: Tensor,
    idx: Tensor | None,
    offset: Tensor,
    new_offset: Tensor,
    use_xyz: bool = True,
) -> Tensor:
    """The older `query_and_group`: the groups alone."""
    new_xyz = xyz if new_xyz is None else new_xyz
    if idx is None:
        idx, _ = knnquery(nsample, xyz, new_xyz, offset, new_offset)
    return _grouping(idx, feat, xyz, new_xyz, use_xyz)


def interpolation(xyz: Tensor, new_xyz: Tensor, feat: Tensor, offset: Tensor, new_offset: Tensor, k: int = 3) -> Tensor:
    """Features (m, c) of `xyz` at `new_xyz` (n, 3): of its k nearest, weighed by 1 / (distance + 1e-8). -> (n, c)"""
    idx, distance = knn_query(k, xyz, offset, new_xyz, new_offset)
    inverse = (1.0 / (distance + 1e-8)).masked_fill(idx == NONE, 0)
    weights = inverse / inverse.sum(1, keepdim=True).clamp(min=torch.finfo(inverse.dtype).tiny)
    idx = idx.long().masked_fill(idx == NONE, 0)
    return ops.aggregate_neighbors(feat.unsqueeze(0), idx.unsqueeze(0), "weighted", weights.unsqueeze(0))[0]


interpolation2 = interpolation


def subtraction(input1: Tensor, input2: Tensor, idx: Tensor) -> Tensor:
    """input1[i] - input2[idx[i, s]]. (n, c), (m, c), (n, nsample) -> (n, nsample, c)"""
    return input1.unsqueeze(1) - grouping2(input2, idx)


def aggregation(input: Tensor, position: Tensor, weight: Tensor, idx: Tensor) -> Tensor:
    """Σ_s (input[idx[i, s]] + position[i, s]) weight[i, s], the weights shared by every c'-th channel.

    Args:
        input: (n, c)
        position: (m, nsample, c)
        weight: (m, nsample, c'), c' a divisor of c: channel j has the weight j % c'.
        idx: (m, nsample)

    Returns:
        (m, c)
    """
    channels = position.shape[-1]
    weights = weight.repeat(1, 1, channels // weight.shape[-1])
    return ((grouping2(input, idx) + position) * weights).sum(1)


def attention_relation_step(
    query: Tensor, key: Tensor, weight: Tensor, index_target: Tensor, index_refer: Tensor
) -> Tensor:
    """Σ_c query[index_target[m], g, c] key[index_refer[m], g, c] weight[c] of each pair m; no gradient for `weight`.

    (n, g, c), (n, g, c), (c), (m), (m) -> (m, g)
    """
    pairs = query[index_target.long()] * key[index_refer.long()]
    return (pairs * weight.detach()).sum(-1)


def attention_fusion_step(weight: Tensor, value: Tensor, index_target: Tensor, index_refer: Tensor) -> Tensor:
    """Σ weight[m, g] value[index_refer[m], g, :] over the pairs m of each target. (m, g), (n, g, c) -> (n, g, c)"""
    terms = weight.unsqueeze(-1) * value[index_refer.long()]
    return torch.zeros_like(value).index_add(0, index_target.long(), terms)


def offset2batch(offset: Tensor) -> Tensor:
    """The cloud of each point. (b) -> int64 (n)"""
    sizes = offset.diff(prepend=offset.new_zeros(1)).long()
    return torch.arange(len(sizes), device=offset.device).repeat_interleave(sizes)


def batch2offset(batch: Tensor) -> Tensor:
    """The end of each cloud. int64 (n) -> int32 (b)"""
    return batch.bincount().cumsum(0).int()


def _ranges(offset: Tensor) -> list[tuple[int, int]]:
    """First point and end of each cloud."""
    ends = offset.tolist()
    starts = [0, *ends[:-1]]
    if any(end < first for first, end in zip(starts, ends, strict=True)):
        raise ValueError(f"offset must not fall, got {ends}")
    return list(zip(starts, ends, strict=True))


def _balls(
    nsample: int,
    max_radius: float,
    min_radius: float,
    xyz: Tensor,
    offset: Tensor,
    new_xyz: Tensor | None,
    new_offset: Tensor | None,
    is_random: bool,
) -> tuple[Tensor, Tensor]:
    if not min_radius < max_radius:
        raise ValueError(f"min_radius must be below max_radius, got {min_radius} and {max_radius}")
    if new_xyz is None or new_offset is None:
        new_xyz, new_offset = xyz, offset
    idx = torch.full((new_xyz.shape[0], nsample), NONE, dtype=torch.int32, device=xyz.device)
    distance = torch.full(idx.shape, FAR, dtype=torch.float32, device=xyz.device)
    for (first, end), (new_first, new_end) in zip(_ranges(offset), _ranges(new_offset), strict=True):
        support = xyz[first:end].detach().float()
        for rows in torch.arange(new_first, new_end, device=xyz.device).split(1024):  # bounds the pairs in memory
            if not len(support):
                break
            squared = (new_xyz[rows].detach().float()[:, None] - support).square().sum(-1)
            is_within = (squared <= 1e-5) | ((squared >= min_radius**2) & (squared < max_radius**2))
            keys = torch.rand_like(squared) if is_random else squared
            order = keys.masked_fill(~is_within, torch.inf).sort(dim=1, stable=True).indices
            count = is_within.sum(1, keepdim=True)
            places = torch.arange(nsample, device=xyz.device).expand(len(rows), -1)
            if not is_random:
                spread = (count / nsample * places).long()
                places = torch.where(count > nsample, spread, places)
            found = order.gather(1, places.clamp(max=len(support) - 1))
            is_missing = places >= count
            idx[rows] = (found + first).masked_fill(is_missing, NONE).int()
            distance[rows] = squared.gather(1, found).sqrt().masked_fill(is_missing, FAR)
    return idx, distance
