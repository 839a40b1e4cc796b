import pytest
import torch

from benchmarks import rivals
from pointpeft.ops import furthest_point_sample, furthest_point_sample_reference

SHAPES = [(32, 1024, 64), (32, 2048, 128), (8, 8192, 512), (1, 100_000, 10_000)]
CANDIDATES = {
    "pointpeft": furthest_point_sample,
    "reference": furthest_point_sample_reference,
    "torch-quickfps": rivals.torch_quickfps_sample,
    "torch-fps": rivals.torch_fps_sample,
    "fpsample kdline": rivals.fpsample_sample,
}


def begins_like_the_reference(xyz, idx):
    """The first picks, from the start that a library took: one of them takes its own."""
    few = min(128, idx.shape[1])
    return torch.equal(idx[:, :few], furthest_point_sample_reference(xyz, few, start=idx[:, 0].contiguous()))


@pytest.mark.parametrize(("batch", "n", "k"), SHAPES)
@pytest.mark.parametrize("name", CANDIDATES)
def bench_furthest_point_sample(compare, name, batch, n, k):
    if n * k > 10**8 and name in ("reference", "torch-fps"):
        pytest.skip("takes seconds")
    xyz = torch.rand(batch, n, 3, generator=torch.Generator().manual_seed(0))
    compare(
        f"furthest_point_sample {batch}x{n}->{k}",
        lambda: CANDIDATES[name](xyz, k),
        lambda idx: idx.shape == (batch, k) and begins_like_the_reference(xyz, idx),
        bytes=xyz.nbytes + 8 * batch * k,
    )
