import pytest
import torch

from benchmarks.conftest import DEVICES
from pointpeft.ops import bottleneck_adapter, bottleneck_adapter_reference

CANDIDATES = {"pointpeft": bottleneck_adapter, "reference": bottleneck_adapter_reference}


def _step(function, inputs, train):
    a = function(*inputs, multiplier=0.1)
    return (a, *torch.autograd.grad(a.sum(), inputs)) if train else (a,)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("train", [False, True], ids=["forward", "step"])
@pytest.mark.parametrize("name", CANDIDATES)
def bench_bottleneck_adapter(compare, name, train, device):
    batch, tokens, c, r = 16, 129, 384, 64
    generator = torch.Generator().manual_seed(0)
    sizes = [(batch, tokens, c), (r, c), (r,), (c, r), (c,)]
    inputs = [(torch.randn(s, generator=generator) / s[-1] ** 0.5).to(device).requires_grad_(train) for s in sizes]
    expected = _step(bottleneck_adapter_reference, inputs, train)
    weights = sum(t.nbytes for t in inputs[1:])
    compare(
        f"bottleneck_adapter {'step' if train else 'forward'} {batch}x{tokens}x{c} r={r}",
        lambda: _step(CANDIDATES[name], inputs, train),
        lambda got: all(torch.allclose(g, e, rtol=1e-3, atol=1e-4) for g, e in zip(got, expected, strict=True)),
        device=device,
        bytes=2 * inputs[0].nbytes + weights + (2 * inputs[0].nbytes + weights if train else 0),
        flops=2 * batch * tokens * c * r * (2 + (5 if train else 0)),
    )
