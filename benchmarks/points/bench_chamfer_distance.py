import pytest
import torch

from benchmarks.conftest import DEVICES
from pointpeft.ops import chamfer_distance, chamfer_distance_reference

# Reconstructed patches of pre-training, one training batch of them, and completed clouds.
SHAPES = [(512, 32, 32), (4096, 32, 32), (4, 1024, 2048)]


def chamfer_distance_cdist(a, b):
    """What most repositories write where the extension does not build."""
    distance = torch.cdist(a, b)
    return distance.amin(2).square().mean() + distance.amin(1).square().mean()


CANDIDATES = {
    "pointpeft": chamfer_distance,
    "cdist and amin": chamfer_distance_cdist,
    "reference": chamfer_distance_reference,
}


def case(batch, n, m, device):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(batch, count, 3, generator=generator).to(device).requires_grad_() for count in (n, m))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("batch", "n", "m"), SHAPES)
@pytest.mark.parametrize("name", CANDIDATES)
def bench_chamfer_distance(compare, name, batch, n, m, device):
    a, b = (t.detach() for t in case(batch, n, m, device))
    expected = chamfer_distance_reference(a, b)
    compare(
        f"chamfer_distance {batch}x{n}x{m}",
        lambda: CANDIDATES[name](a, b),
        lambda loss: torch.allclose(loss, expected, rtol=1e-3),  # cdist's matrix product loses digits
        device,
        bytes=a.nbytes + b.nbytes,
        flops=2 * 8 * batch * n * m,
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("batch", "n", "m"), SHAPES)
@pytest.mark.parametrize("name", CANDIDATES)
def bench_chamfer_distance_with_backward(compare, name, batch, n, m, device):
    a, b = case(batch, n, m, device)
    expected = torch.autograd.grad(chamfer_distance_reference(a, b), (a, b))
    compare(
        f"chamfer_distance and backward {batch}x{n}x{m}",
        lambda: torch.autograd.grad(CANDIDATES[name](a, b), (a, b)),
        # cdist's rounding picks another neighbour where two nearly tie, and turns the gradient of that pair alone.
        lambda grads: all((x - y).norm() <= 3e-2 * y.norm() for x, y in zip(grads, expected, strict=True)),
        device,
        bytes=2 * (a.nbytes + b.nbytes),
        flops=2 * 8 * batch * n * m,
    )
