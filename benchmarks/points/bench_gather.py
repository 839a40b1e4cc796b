import pytest
import torch

from benchmarks.conftest import DEVICES
from pointpeft.ops import gather, gather_reference

SHAPES = [(32, 1024, 3, (64, 32)), (32, 2048, 3, (128, 32)), (16, 128, 384, (128, 8))]
CANDIDATES = {"pointpeft": gather, "reference": gather_reference}


def case(batch, n, channels, shape, device, requires_grad=False):
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(batch, n, channels, generator=generator).to(device).requires_grad_(requires_grad)
    return features, torch.randint(n, (batch, *shape), generator=generator).to(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("batch", "n", "channels", "shape"), SHAPES)
@pytest.mark.parametrize("name", CANDIDATES)
def bench_gather(compare, name, batch, n, channels, shape, device):
    features, idx = case(batch, n, channels, shape, device)
    expected = gather_reference(features, idx)
    compare(
        f"gather {batch}x{n}x{channels} at {shape}",
        CANDIDATES[name],
        lambda out: torch.equal(out, expected),
        device,
        rotate=(features, idx),
        bytes=features.nbytes + idx.nbytes + expected.nbytes,
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("batch", "n", "channels", "shape"), SHAPES)
@pytest.mark.parametrize("name", CANDIDATES)
def bench_gather_backward(compare, name, batch, n, channels, shape, device):
    features, idx = case(batch, n, channels, shape, device, requires_grad=True)
    grad = torch.rand(batch, *shape, channels, generator=torch.Generator().manual_seed(1)).to(device)
    out = CANDIDATES[name](features, idx)
    expected = torch.autograd.grad(gather_reference(features, idx), features, grad)[0]
    compare(
        f"gather backward {batch}x{n}x{channels} at {shape}",
        lambda grad: torch.autograd.grad(out, features, grad, retain_graph=True)[0],
        lambda found: torch.allclose(found, expected, rtol=1e-4, atol=1e-5),
        device,
        rotate=(grad,),
        bytes=grad.nbytes + idx.nbytes + features.nbytes,
    )
