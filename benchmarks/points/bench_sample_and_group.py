import pytest
import torch

from benchmarks import rivals
from pointpeft.ops import furthest_point_sample, gather, knn, sample_and_group, sample_and_group_reference

SHAPES = [(32, 1024, 64, 32), (32, 2048, 128, 32)]


def parts(xyz, num_groups, group_size):
    """The same result from the single operations."""
    center_idx = furthest_point_sample(xyz, num_groups)
    centers = gather(xyz, center_idx)
    neighbor_idx = knn(centers, xyz, group_size)[1]
    return gather(xyz, neighbor_idx) - centers[:, :, None], centers, center_idx, neighbor_idx


def indices(xyz, num_groups, group_size):
    """What torch-fps's fused call gives: the sampled points and their neighbours by index, no rows."""
    center_idx = furthest_point_sample(xyz, num_groups)
    return center_idx, knn(gather(xyz, center_idx), xyz, group_size)[1]


CANDIDATES = {
    "pointpeft": sample_and_group,
    "pointpeft, FPS + kNN (indices only)": indices,
    "pointpeft, in parts": parts,
    "reference": sample_and_group_reference,
    "torch-fps (indices only)": rivals.torch_fps_sample_and_knn,
}


@pytest.mark.parametrize(("batch", "n", "num_groups", "group_size"), SHAPES)
@pytest.mark.parametrize(("name", "device"), rivals.rows(CANDIDATES))
def bench_sample_and_group(compare, name, batch, n, num_groups, group_size, device):
    xyz = torch.rand(batch, n, 3, generator=torch.Generator().manual_seed(0)).to(device)
    expected = sample_and_group_reference(xyz, num_groups, group_size)
    compare(
        f"sample_and_group {batch}x{n}->{num_groups}x{group_size}",
        lambda: CANDIDATES[name](xyz, num_groups, group_size),
        # The order of equal distances is nobody's promise but ours: sorted for the rest.
        lambda found: torch.equal(found[-1].sort(-1).values, expected.neighbor_idx.sort(-1).values),
        device,
        bytes=xyz.nbytes + sum(part.nbytes for part in expected),
    )
