import pytest
import torch

from benchmarks.conftest import DEVICES
from pointpeft.ops import scale_shift_mlp, scale_shift_mlp_reference

CANDIDATES = {"pointpeft": scale_shift_mlp, "reference": scale_shift_mlp_reference}
BATCH, TOKENS, C, H = 16, 129, 384, 1536  # a block of the published size


def _inputs(device):
    generator = torch.Generator().manual_seed(0)
    sizes = [(BATCH, TOKENS, C), (H, C), (H,), (H,), (H,), (C, H), (C,), (C,), (C,)]
    return [(torch.randn(s, generator=generator) / s[-1] ** 0.5).to(device) for s in sizes]


def _step(function, inputs, train):
    y = function(*inputs)
    trained = [t for t in inputs if t.requires_grad]
    return (y, *torch.autograd.grad(y.sum(), trained)) if train else (y,)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("train", [False, True], ids=["forward", "step"])
@pytest.mark.parametrize("name", CANDIDATES)
def bench_scale_shift_mlp(compare, name, train, device):
    inputs = [t.requires_grad_(train and i in (0, 3, 4, 7, 8)) for i, t in enumerate(_inputs(device))]
    expected = _step(scale_shift_mlp_reference, inputs, train)
    compare(
        f"scale_shift_mlp {'step' if train else 'forward'} {BATCH}x{TOKENS}",
        lambda: _step(CANDIDATES[name], inputs, train),
        lambda got: all(torch.allclose(g, e, rtol=1e-3, atol=1e-3) for g, e in zip(got, expected, strict=True)),
        device=device,
        bytes=(5 if train else 2) * inputs[0].nbytes,
    )
