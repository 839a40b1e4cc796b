import pytest
import torch

from benchmarks.conftest import DEVICES
from pointpeft.ops import AdapterWeights, adapter, adapter_reference

CANDIDATES = {"pointpeft": adapter, "reference": adapter_reference}


def _inputs(batch, tokens, c, r, device, dtype):
    generator = torch.Generator().manual_seed(0)
    sizes = [(batch, tokens, c), (c,), (c,), (1, c), (1,), (r, c), (r,), (c, r), (c,)]
    return [(torch.randn(s, generator=generator) / s[-1] ** 0.5).to(device, dtype) for s in sizes]


def _step(function, inputs, train):
    a, prompt = function(inputs[0], AdapterWeights(*inputs[1:]), with_prompt=True)
    return (a, prompt, *torch.autograd.grad(a.sum() + prompt.sum(), inputs)) if train else (a, prompt)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("train", [False, True], ids=["forward", "step"])
@pytest.mark.parametrize("batch", [1, 16, 32])
@pytest.mark.parametrize("name", CANDIDATES)
def bench_adapter(compare, name, batch, train, device):
    tokens, c, r = 129, 384, 64
    inputs = [t.requires_grad_(train) for t in _inputs(batch, tokens, c, r, device, torch.float32)]
    expected = _step(adapter_reference, inputs, train)
    weights = sum(t.nbytes for t in inputs[1:])
    compare(
        f"adapter {'step' if train else 'forward'} {batch}x{tokens}x{c} r={r}",
        lambda: _step(CANDIDATES[name], inputs, train),
        lambda got: all(torch.allclose(g, e, rtol=1e-3, atol=1e-4) for g, e in zip(got, expected, strict=True)),
        device=device,
        bytes=2 * inputs[0].nbytes + weights + (2 * inputs[0].nbytes + weights if train else 0),
        flops=2 * batch * tokens * c * r * (2 + (5 if train else 0)),
    )
