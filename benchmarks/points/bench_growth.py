"""Time against N: the point operations on one cloud that grows, ours and the fastest peer that keeps up."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

from benchmarks import rivals
from benchmarks.points.bench_furthest_point_sample import begins_like_the_reference
from pointpeft.ops import (
    aggregate_neighbors,
    aggregate_neighbors_reference,
    ball_query,
    ball_query_reference,
    chamfer_distance,
    furthest_point_sample,
    gather,
    interpolate,
    interpolate_reference,
    knn,
    knn_reference,
    sample_and_group,
)


class Case(NamedTuple):
    """One operation on one cloud: what of it is done, by whom, how a result is known to be right, and its bytes."""

    title: str
    contenders: dict[str, Callable[[], Any]]
    check: Callable[[Any], bool]
    bytes: int


def cloud(n):
    """Uniform points, and the indices of 16 of them, at which results are checked."""
    return torch.rand(1, n, 3, generator=torch.Generator().manual_seed(0)), torch.arange(0, n, n // 16)[:16]


def sampling(n):
    xyz, _ = cloud(n)
    return Case(
        f"a tenth of 1x{n}",
        {
            "pointpeft": lambda: furthest_point_sample(xyz, n // 10),
            "torch-quickfps": lambda: rivals.torch_quickfps_sample(xyz, n // 10),
        },
        lambda idx: begins_like_the_reference(xyz, idx),
        xyz.nbytes + 8 * n // 10,
    )


def searching(n):
    xyz, some = cloud(n)
    expected = knn_reference(xyz[:, some], xyz, 16)[0]
    return Case(
        f"1x{n} among themselves, k=16",
        {"pointpeft": lambda: knn(xyz, xyz, 16), "pykdtree": lambda: rivals.pykdtree_knn(xyz, xyz, 16)},
        lambda found: torch.allclose(found[0][:, some].float(), expected, rtol=1e-4, atol=1e-6),
        2 * xyz.nbytes + 12 * 16 * n,
    )


def balls(n):
    xyz, some = cloud(n)
    query, radius = xyz[:, : n // 16].clone(), (32 * 3 / (4 * torch.pi * n)) ** (1 / 3)  # some 32 points inside
    some = some // 16
    expected = ball_query_reference(query[:, some], xyz, radius, 32)
    return Case(
        f"a sixteenth of 1x{n}, k=32",
        {"pointpeft": lambda: ball_query(query, xyz, radius, 32)},
        lambda idx: torch.equal(idx[:, some], expected),
        query.nbytes + xyz.nbytes + 8 * 32 * n // 16,
    )


def grouping(n):
    xyz, _ = cloud(n)
    return Case(
        f"1x{n}->{n // 16}x32",
        {"pointpeft": lambda: sample_and_group(xyz, n // 16, 32)},
        lambda groups: (
            begins_like_the_reference(xyz, groups.center_idx)
            and torch.equal(groups.neighbor_idx[:, :16], knn_reference(groups.centers[:, :16], xyz, 32)[1])
        ),
        xyz.nbytes + n // 16 * (32 * 20 + 20),
    )


def gathering(n):
    features = torch.rand(1, n, 32, generator=torch.Generator().manual_seed(0))
    idx = torch.randint(n, (1, n), generator=torch.Generator().manual_seed(1))
    return Case(
        f"1x{n}x32 at {n}",
        {"pointpeft": lambda: gather(features, idx), "indexing": lambda: features[:, idx[0]]},
        lambda rows: torch.equal(rows, features[:, idx[0]]),
        2 * features.nbytes + idx.nbytes,
    )


def aggregating(n):
    features = torch.rand(1, n, 64, generator=torch.Generator().manual_seed(0))
    idx = torch.randint(n, (1, n // 4, 16), generator=torch.Generator().manual_seed(1))
    expected = aggregate_neighbors_reference(features, idx[:, :16], "max")
    return Case(
        f"max 1x{n}x64, {n // 4} groups of 16",
        {"pointpeft": lambda: aggregate_neighbors(features, idx, "max")},
        lambda pooled: torch.equal(pooled[:, :16], expected),
        features.nbytes + idx.nbytes + features.nbytes // 4,
    )


def interpolating(n):
    xyz, some = cloud(n)
    support = xyz[:, : n // 8].clone()
    features = torch.rand(1, n // 8, 64, generator=torch.Generator().manual_seed(1))
    expected = interpolate_reference(xyz[:, some], support, features, 3)
    return Case(
        f"k=3 1x({n} from {n // 8})x64",
        {"pointpeft": lambda: interpolate(xyz, support, features, 3)},
        lambda found: torch.allclose(found[:, some], expected, rtol=1e-4, atol=1e-4),
        xyz.nbytes + support.nbytes + features.nbytes + 4 * 64 * n,
    )


def comparing(n):
    a = cloud(n)[0]
    b = torch.rand(1, n, 3, generator=torch.Generator().manual_seed(1))
    expected = knn(a, b, 1)[0].mean() + knn(b, a, 1)[0].mean()
    return Case(
        f"1x{n}x{n}",
        {"pointpeft": lambda: chamfer_distance(a, b)},
        lambda loss: torch.allclose(loss, expected, rtol=1e-5),
        a.nbytes + b.nbytes,
    )


MILLION = [1000, 10_000, 100_000, 1_000_000]
OPERATIONS = {  # the case, and the sizes of each contender: as far as a run stays within seconds
    "furthest_point_sample": (sampling, {"pointpeft": MILLION, "torch-quickfps": MILLION[:3]}),
    "knn": (searching, {"pointpeft": MILLION, "pykdtree": MILLION[:3]}),
    "ball_query": (balls, {"pointpeft": MILLION[:3]}),
    "sample_and_group": (grouping, {"pointpeft": MILLION[:3]}),
    "gather": (gathering, {"pointpeft": MILLION, "indexing": MILLION}),
    "aggregate_neighbors": (aggregating, {"pointpeft": MILLION[:3]}),
    "interpolate": (interpolating, {"pointpeft": MILLION[:3]}),
    "chamfer_distance": (comparing, {"pointpeft": [1000, 3000, 10_000]}),
}
ROWS = [
    (operation, name, n) for operation, (_, names) in OPERATIONS.items() for name, sizes in names.items() for n in sizes
]


@pytest.mark.parametrize(("operation", "name", "n"), ROWS)
def bench_growth(compare, operation, name, n):
    case = OPERATIONS[operation][0](n)
    rounds = 2 if n == 1_000_000 else None
    compare(f"{operation} {case.title}", case.contenders[name], case.check, rounds=rounds, bytes=case.bytes, n=n)
