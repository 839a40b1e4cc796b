import pytest
import torch

from benchmarks.conftest import DEVICES
from pointpeft.ops import adapted_mlp, adapted_mlp_reference

CANDIDATES = {"pointpeft": adapted_mlp, "reference": adapted_mlp_reference}
BATCH, TOKENS, C, H, R = 16, 129, 384, 1536, 64  # a block of the published size
MAPS = (0, 1, 4, 5)  # of the MLP: frozen


def _inputs(device, train):
    generator = torch.Generator().manual_seed(0)

    def draw(*sizes):
        return [(torch.randn(s, generator=generator) / s[-1] ** 0.5).to(device) for s in sizes]

    x, norm = draw((BATCH, TOKENS, C)), draw(*[(C,)] * 4)
    mlp = draw((H, C), (H,), (H,), (H,), (C, H), (C,), (C,), (C,))
    adapter = draw((C,), (C,), (1, C), (1,), (R, C), (R,), (C, R), (C,))
    for tensor in (*x, *norm, *adapter, *(t for i, t in enumerate(mlp) if i not in MAPS)):
        tensor.requires_grad_(train)
    return x[0], norm, mlp, adapter


def _step(function, inputs, train):
    y, prompt = function(*inputs)
    if not train:
        return y, prompt
    x, *groups = inputs
    trained = [t for t in (x, *(t for group in groups for t in group)) if t.requires_grad]
    return (y, prompt, *torch.autograd.grad(y.sum() + prompt.sum(), trained))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("train", [False, True], ids=["forward", "step"])
@pytest.mark.parametrize("name", CANDIDATES)
def bench_adapted_mlp(compare, name, train, device):
    inputs = _inputs(device, train)
    expected = _step(adapted_mlp_reference, inputs, train)
    compare(
        f"adapted_mlp {'step' if train else 'forward'} {BATCH}x{TOKENS}",
        lambda: _step(CANDIDATES[name], inputs, train),
        lambda got: all(torch.allclose(g, e, rtol=1e-3, atol=2e-3) for g, e in zip(got, expected, strict=True)),
        device=device,
        bytes=(6 if train else 2) * inputs[0].nbytes,
    )
