import pytest
import torch

from benchmarks.conftest import DEVICES
from pointpeft.ops import frozen_linear, frozen_linear_reference

CANDIDATES = {"pointpeft": frozen_linear, "reference": frozen_linear_reference}
# Tokens and channels: queries, keys and values of 16 clouds at the published size, both maps of their MLP for half of
# them at a time, as it takes them, and the fewest tokens that go to AMX.
SIZES = [(2064, 384, 1152), (1032, 384, 1536), (1032, 1536, 384), (512, 384, 384)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("rows", "channels", "width"), SIZES)
@pytest.mark.parametrize("train", [False, True], ids=["forward", "step"])
@pytest.mark.parametrize("name", CANDIDATES)
def bench_frozen_linear(compare, name, train, rows, channels, width, device):
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(s, generator=generator).to(device) for s in ((rows, channels), (width, channels), (width,))
    )
    x.requires_grad_(train)

    def run(function):
        y = function(x, weight, bias)
        return torch.autograd.grad(y.sum(), x)[0] if train else y

    expected = run(frozen_linear_reference)
    compare(
        f"frozen_linear {'step' if train else 'forward'} {rows}x{channels} to {width}",
        lambda: run(CANDIDATES[name]),
        lambda got: torch.allclose(got, expected, rtol=1e-3, atol=1e-3),
        device=device,
        flops=(2 if train else 1) * 2 * rows * channels * width,
    )
