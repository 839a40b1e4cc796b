import pytest
import torch

from benchmarks.conftest import DEVICES
from pointpeft.ops import interpolate, interpolate_reference

SHAPES = [(32, 128, 64, 384, "all"), (16, 2048, 128, 1152, 3)]
CANDIDATES = {"pointpeft": interpolate, "reference": interpolate_reference}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("batch", "m", "n", "channels", "k"), SHAPES)
@pytest.mark.parametrize("what", ["forward", "forward + backward"])
@pytest.mark.parametrize("name", CANDIDATES)
def bench_interpolate(compare, name, what, batch, m, n, channels, k, device):
    generator = torch.Generator().manual_seed(0)
    query, support = (torch.rand(batch, size, 3, generator=generator).to(device) for size in (m, n))
    features = torch.randn(batch, n, channels, generator=generator).to(device)
    grad = torch.randn(batch, m, channels, generator=generator).to(device)

    def run(op):
        if what == "forward":
            return op(query, support, features, k)
        leaf = features.detach().requires_grad_()
        op(query, support, leaf, k).backward(grad)
        return leaf.grad

    expected = run(interpolate_reference)
    passes = 1 if what == "forward" else 2
    compare(
        f"interpolate k={k} {batch}x({m} from {n})x{channels}, {what}",
        lambda: run(CANDIDATES[name]),
        lambda result: torch.allclose(result, expected, rtol=1e-4, atol=1e-4),
        device,
        bytes=passes * (query.nbytes + support.nbytes + features.nbytes + grad.nbytes),
        flops=batch * m * (8 * n + passes * 2 * (n if k == "all" else k) * channels),
    )
