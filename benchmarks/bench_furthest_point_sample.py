import pytest
import torch

from pointpeft.ops import furthest_point_sample, furthest_point_sample_reference

SHAPES = [(32, 1024, 64), (32, 2048, 128), (8, 8192, 512)]
CANDIDATES = {"pointpeft": furthest_point_sample, "reference": furthest_point_sample_reference}


@pytest.mark.parametrize(("batch", "n", "k"), SHAPES)
@pytest.mark.parametrize("name", CANDIDATES)
def bench_furthest_point_sample(compare, name, batch, n, k):
    xyz = torch.rand(batch, n, 3, generator=torch.Generator().manual_seed(0))
    expected = furthest_point_sample_reference(xyz, k)
    compare(
        f"furthest_point_sample {batch}x{n}->{k}",
        lambda: CANDIDATES[name](xyz, k),
        lambda idx: torch.equal(idx, expected),
        bytes=xyz.nbytes + expected.nbytes,
    )
