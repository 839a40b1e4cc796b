import pytest
import torch

from benchmarks.conftest import DEVICES
from pointpeft.ops import frozen_linear, frozen_linear_reference

CANDIDATES = {"pointpeft": frozen_linear, "reference": frozen_linear_reference}
BATCH, TOKENS, C = 16, 129, 384  # a block of the published size


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("train", [False, True], ids=["forward", "step"])
@pytest.mark.parametrize("name", CANDIDATES)
def bench_frozen_linear(compare, name, train, device):
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(s, generator=generator).to(device) for s in ((BATCH, TOKENS, C), (3 * C, C), (3 * C,))
    )
    x.requires_grad_(train)

    def run(function):
        y = function(x, weight, bias)
        return torch.autograd.grad(y.sum(), x)[0] if train else y

    expected = run(frozen_linear_reference)
    compare(
        f"frozen_linear {'step' if train else 'forward'} {BATCH}x{TOKENS}",
        lambda: run(CANDIDATES[name]),
        lambda got: torch.allclose(got, expected, rtol=1e-3, atol=1e-3),
        device=device,
        flops=(2 if train else 1) * 2 * BATCH * TOKENS * 3 * C * C,
    )
