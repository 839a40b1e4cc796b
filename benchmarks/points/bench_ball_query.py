import pytest
import torch

from benchmarks import classic, rivals
from pointpeft.ops import ball_query, ball_query_reference

SHAPES = [(32, 64, 1024, 0.1, 32), (32, 128, 2048, 0.1, 32), (8, 512, 8192, 0.1, 64)]
CANDIDATES = {
    "pointpeft": ball_query,
    "reference": ball_query_reference,
    "pointnet2_ops (restated)": classic.pointnet2_ball_query,
}


@pytest.mark.parametrize(("batch", "m", "n", "radius", "k"), SHAPES)
@pytest.mark.parametrize(("name", "device"), rivals.rows(CANDIDATES))
def bench_ball_query(compare, name, batch, m, n, radius, k, device):
    generator = torch.Generator().manual_seed(0)
    support = torch.rand(batch, n, 3, generator=generator).to(device)
    query = support[:, :m].clone()
    expected = ball_query_reference(query, support, radius, k)
    compare(
        f"ball_query {batch}x({m} of {n}), radius {radius}, k={k}",
        lambda: CANDIDATES[name](query, support, radius, k),
        # Products fused with sums put a point at the very radius on the other side: not index for index there.
        lambda idx: (idx != expected).float().mean() <= (1e-3 if "(restated)" in name else 0),
        device,
        bytes=query.nbytes + support.nbytes + expected.nbytes,
        flops=8 * batch * m * n,  # an upper bound: a query stops at its k-th find
    )
