import pytest
import torch

from benchmarks import classic, rivals
from pointpeft.ops import furthest_point_sample, furthest_point_sample_reference

SHAPES = [(32, 1024, 64), (32, 2048, 128), (8, 8192, 512), (1, 100_000, 10_000), (1, 100_000, 25_000)]
CANDIDATES = {
    "pointpeft": furthest_point_sample,
    "reference": furthest_point_sample_reference,
    "torch-quickfps": rivals.torch_quickfps_sample,
    "torch-fps": rivals.torch_fps_sample,
    "fpsample kdline": rivals.fpsample_sample,
    "pointnet2_ops (restated)": classic.pointnet2_sample,
}


def begins_like_the_reference(xyz, idx):
    """The first picks, from the start that a library took: one of them takes its own."""
    few = min(128, idx.shape[1])
    return torch.equal(idx[:, :few], furthest_point_sample_reference(xyz, few, start=idx[:, 0].contiguous()))


def takes_the_farthest(xyz, idx):
    """The same by the definition, but for rounding (products that are fused with sums) and for points that the rule of
    pointnet2_ops leaves out."""
    picked = xyz.gather(1, idx[:, :128, None].long().expand(-1, -1, 3))
    sq_distance = (xyz[:, :, None] - picked[:, None]).square().sum(-1)
    nearest = sq_distance.cummin(2).values.masked_fill(xyz.square().sum(-1, keepdim=True) <= 1e-3, -1)
    chosen = nearest[..., :-1].gather(1, idx[:, None, 1:128].long())[:, 0]
    return bool((chosen >= nearest[..., :-1].amax(1) * (1 - 1e-5)).all())


@pytest.mark.parametrize(("batch", "n", "k"), SHAPES)
@pytest.mark.parametrize(("name", "device"), rivals.rows(CANDIDATES))
def bench_furthest_point_sample(compare, name, batch, n, k, device):
    if n * k > 10**8 and name in ("reference", "torch-fps"):
        pytest.skip(f"{name} takes seconds for {k} of {n} points: left out here")
    if k == 25_000 and device == "cpu":
        pytest.skip("25 000 of 100 000 points is a row of the aims on a GPU: left out on the CPU")
    xyz = torch.rand(batch, n, 3, generator=torch.Generator().manual_seed(0)).to(device)
    right = takes_the_farthest if "(restated)" in name else begins_like_the_reference
    compare(
        f"furthest_point_sample {batch}x{n}->{k}",
        lambda: CANDIDATES[name](xyz, k),
        lambda idx: idx.shape == (batch, k) and right(xyz, idx),
        device,
        bytes=xyz.nbytes + 8 * batch * k,
    )
