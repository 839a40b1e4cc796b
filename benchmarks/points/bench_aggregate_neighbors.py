import pytest
import torch

from benchmarks.conftest import DEVICES
from pointpeft.ops import aggregate_neighbors, aggregate_neighbors_reference

SHAPES = [(32, 128, 384, 64, 16), (8, 2048, 64, 512, 32)]
CANDIDATES = {"pointpeft": aggregate_neighbors, "reference": aggregate_neighbors_reference}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("batch", "n", "channels", "groups", "s"), SHAPES)
@pytest.mark.parametrize("mode", ["max", "mean", "weighted"])
@pytest.mark.parametrize("what", ["forward", "forward + backward"])
@pytest.mark.parametrize("name", CANDIDATES)
def bench_aggregate_neighbors(compare, name, what, mode, batch, n, channels, groups, s, device):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(batch, n, channels, generator=generator).to(device)
    idx = torch.randint(0, n, (batch, groups, s), generator=generator).to(device)
    weights = torch.rand(batch, groups, s, generator=generator).to(device) if mode == "weighted" else None
    grad = torch.randn(batch, groups, channels, generator=generator).to(device)

    def run(op, features=features, idx=idx):
        if what == "forward":
            return op(features, idx, mode, weights)
        leaf = features.detach().requires_grad_()
        op(leaf, idx, mode, weights).backward(grad)
        return leaf.grad

    expected = run(aggregate_neighbors_reference)
    passes = 1 if what == "forward" else 2
    compare(
        f"aggregate_neighbors {mode} {batch}x{n}x{channels}, {groups} groups of {s}, {what}",
        lambda *inputs: run(CANDIDATES[name], *inputs),
        lambda result: torch.allclose(result, expected, rtol=1e-4, atol=1e-4),
        device,
        rotate=(features, idx),
        bytes=passes * (features.nbytes + idx.nbytes + grad.nbytes),
        flops=passes * batch * groups * s * channels * (2 if mode == "weighted" else 1),
    )
