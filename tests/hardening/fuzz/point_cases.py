"""The cases of the point operations."""

import math
from typing import Any

import torch
from torch import Tensor

from pointpeft import ops
from pointpeft.ops.points.knn import EXACT_CHANNELS
from tests.hardening.fuzz.case import Case, case_of, largest, near, tame, wide
from tests.hardening.fuzz.draw import FLOATS, Draw


def rows(points: Tensor, idx: Tensor) -> Tensor:
    """points[b, idx[b, ...]]."""
    return ops.gather_reference(points, idx)


def clouds(draw: Draw, dtype: torch.dtype, channels: int = 3, large: float = 0.005) -> tuple[Tensor, Tensor]:
    """Queries and points to search, sometimes the same, rarely so many that a tree is built."""
    batch = draw.choice([0, 1, 1, 2, 3])
    m, n = draw.size(), draw.size()
    if draw.happens(large):
        batch, m, n = 1, draw.randrange(250, 300), draw.randrange(4090, 4300)
    kind = draw.choice([None, "normal", "lattice"])
    support = draw.floats(batch, n, channels, dtype=dtype, kind=kind, nonfinite=0.03)
    if draw.happens(0.3):
        return support, support
    return draw.floats(batch, m, channels, dtype=dtype, kind=kind, nonfinite=0.03), support


def lengths_of(draw: Draw, batch: int, least: int, n: int) -> Tensor | None:
    if draw.happens(0.7) or least > n:
        return None
    lengths = torch.tensor([draw.randint(least, n) for _ in range(batch)])
    return lengths.to(draw.choice([torch.int32, torch.int64]))


@case_of
def knn(draw: Draw) -> Case:
    dtype = draw.choice(FLOATS)
    channels = draw.choice([3, 3, 3, 3, 1, 2, 4, 8, 16, 17, 40])
    query, support = clouds(draw, dtype, channels)
    n = support.shape[1]
    # Of many points, all are neighbours but rarely: such a case takes the time of a hundred.
    most = n if n <= 257 or draw.happens(0.05) else 64
    k = draw.choice([1, min(n, 16), most, draw.randint(1, max(most, 1))])
    k = min(k, max(1, (1 << 26) // max(1, query.numel())))  # the reference's gradient holds every difference
    arguments = {"query": query, "support": support, "k": k, "lengths": lengths_of(draw, len(support), k, n)}

    def judge(query, support, result, **_):
        return [(query[:, :, None] - rows(support, result[1])).square().sum(-1), result[1]]

    if channels <= EXACT_CHANNELS:
        return Case(arguments, (1,), judge, ("query", "support"), not wide(query, support))

    def nearest(query, support, k, lengths, result, **_):  # of nearly equal ones any, and the distances prove it
        by_index = judge(query, support, result)[0]
        every = ops.knn_reference(query.detach(), support.detach(), k, lengths=lengths)[0]
        return [every + by_index - by_index.detach(), result[1]]

    calm = not wide(query, support) and near(query, support)
    return Case(arguments, (), nearest, ("query", "support"), calm, channels * largest(query, support) ** 2)


@case_of
def ball_query(draw: Draw) -> Case:
    query, support = clouds(draw, draw.choice(FLOATS))
    radius = draw.choice([0.1, 0.5, 1.0, 2, 1e-20, 1e30, math.inf, draw.uniform(0, 3)])
    k = draw.randint(1, max(1, support.shape[1]))
    return Case({"query": query, "support": support, "radius": radius, "k": k}, (0,))


def samples(draw: Draw) -> tuple[Tensor, int, dict[str, Any]]:
    dtype = draw.choice(FLOATS)
    batch, n = draw.choice([0, 1, 1, 2, 3]), draw.size()
    large = draw.happens(0.01)
    if large:  # so many that a tree is built, from 2^21 points times samples on
        batch, n = 1, draw.choice([2048, 2500, 4097, 6600])
    xyz = draw.floats(batch, n, 3, dtype=dtype, nonfinite=0.03)
    k = draw.choice([1, n, draw.randint(1, max(1, n))])
    if large:
        k = draw.choice([64, max(320, 2**21 // n + draw.choice([-1, 0, 1, 2]))])
    lengths = lengths_of(draw, batch, k, n)
    low = n if lengths is None or not batch else int(lengths.min())
    start = draw.randrange(max(1, low))
    if draw.happens(0.3):
        start = torch.tensor([draw.randrange(max(1, low)) for _ in range(batch)], dtype=torch.int64)
    options = {"lengths": lengths, "start": start, "min_sq_norm": draw.choice([0.0, 0.0, 1e-3, 0.5, 1e9])}
    return xyz, k, options


@case_of
def furthest_point_sample(draw: Draw) -> Case:
    xyz, k, options = samples(draw)
    return Case({"xyz": xyz, "num_samples": k, **options}, (0,))


@case_of
def sample_and_group(draw: Draw) -> Case:
    xyz, k, options = samples(draw)
    n = xyz.shape[1]
    low = n if options["lengths"] is None or not len(xyz) else int(options["lengths"].min())
    size = draw.randint(1, max(1, min(low, 64)))

    def judge(xyz, result, **_):
        centers = rows(xyz, result[2])
        return [rows(xyz, result[3]) - centers[:, :, None], centers, result[2], result[3]]

    arguments = {"xyz": xyz, "num_groups": k, "group_size": size, **options}
    return Case(arguments, (0, 1, 2, 3), judge, ("xyz",), not wide(xyz))


def indices(draw: Draw, batch: int, shape: tuple[int, ...], n: int) -> Tensor:
    high = n + draw.happens(0.02)
    idx = torch.randint(-draw.happens(0.02), max(1, high), (batch, *shape), generator=draw.torch)
    return draw.form(idx)


@case_of
def gather(draw: Draw) -> Case:
    dtype = draw.choice([*FLOATS, torch.int64, torch.int32, torch.uint8, torch.int16, torch.bool])
    batch, n, channels = draw.choice([0, 1, 2, 3]), draw.size(65), draw.size(65)
    if dtype.is_floating_point:
        features = draw.floats(batch, n, channels, dtype=dtype, nonfinite=0.2)
    else:
        features = draw.form(torch.randint(0, 100, (batch, n, channels), generator=draw.torch).to(dtype))
    shape = draw.choice([(), (draw.size(33),), (draw.size(17), draw.size(17)), (2, draw.size(5), 3)])
    idx = indices(draw, batch, shape, n)
    learns = ("features",) if dtype.is_floating_point else ()
    return Case({"features": features, "idx": idx}, (0,), learns=learns, tame=tame(features))


@case_of
def aggregate_neighbors(draw: Draw) -> Case:
    dtype = draw.choice(FLOATS)
    batch, n, channels = draw.choice([0, 1, 2, 3]), draw.size(65), draw.size(100)
    features = draw.floats(batch, n, channels, dtype=dtype, nonfinite=0.05)
    idx = indices(draw, batch, (draw.size(33), draw.choice([0, 1, 2, 7, 16, 32, 33, 257])), n)
    mode = draw.choice(["max", "mean", "sum", "weighted"])
    weights = None
    if mode == "weighted":
        weights = draw.floats(*idx.shape, dtype=draw.choice([dtype, *FLOATS]), kind="normal", nonfinite=0.02)
    arguments = {"features": features, "idx": idx, "mode": mode, "weights": weights}
    calm = tame(features) and (weights is None or tame(weights))
    return Case(arguments, (0,) if mode == "max" else (), learns=("features", "weights"), tame=calm)


@case_of
def interpolate(draw: Draw) -> Case:
    dtype = draw.choice(FLOATS)
    query, support = clouds(draw, dtype)
    query, support = query[:, :65], support[:, :65]
    features = draw.floats(*support.shape[:2], draw.size(33), dtype=draw.choice([dtype, *FLOATS]), kind="normal")
    k = draw.choice(["all", 3, 1, draw.randint(1, max(1, support.shape[1]))])
    eps = draw.choice([1e-8, 1e-8, 1.0, 1e-3])

    def judge(query_xyz, support_xyz, support_features, k, eps, result, **_):
        every = support_xyz.shape[1]
        idx = ops.knn_reference(query.detach(), support.detach(), every if k == "all" else k)[1]
        weights = ((query_xyz[:, :, None] - rows(support_xyz, idx)).square().sum(-1) + eps).reciprocal()
        weights = weights / weights.sum(-1, keepdim=True)
        return [(rows(support_features, idx) * weights[..., None]).sum(2)]

    arguments = {"query_xyz": query, "support_xyz": support, "support_features": features, "k": k, "eps": eps}
    calm = not wide(query, support) and near(query, support)
    return Case(arguments, (), judge, ("support_features",), calm)


@case_of
def chamfer_distance(draw: Draw) -> Case:
    a, b = clouds(draw, draw.choice(FLOATS), large=0.0005)
    if a is b:
        b = b.clone()
    return Case({"a": a, "b": b, "norm": draw.choice([1, 2])}, (), None, ("a", "b"), not wide(a, b) and near(a, b))
