from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.conftest import DEVICES
from benchmarks.fused import BATCH, TOKENS, C, H, bench
from pointpeft.ops import AdapterWeights, MlpWeights, NormWeights, frozen_mlp, frozen_mlp_reference

R = 64  # of the adapter
MAPS = {"x": (BATCH, TOKENS, C), "w1": (H, C), "b1": (H,), "w2": (C, H), "b2": (C,)}
SCALES = {"scale1": (H,), "shift1": (H,), "scale2": (C,), "shift2": (C,)}


def _call(function: Callable[..., Any], x: Tensor, **weights: Tensor) -> Tensor:
    return function(x, MlpWeights(**weights))


bench_frozen_mlp = bench("frozen_mlp", MAPS, ("x",), call=_call)
bench_scaled_mlp = bench(
    "frozen_mlp", MAPS | SCALES, ("x", *SCALES), label="frozen_mlp with scale and shift", call=_call
)


def _inputs(device, train):
    generator = torch.Generator().manual_seed(0)

    def draw(*sizes):
        return [(torch.randn(s, generator=generator) / s[-1] ** 0.5).to(device).requires_grad_(train) for s in sizes]

    x, norm = draw((BATCH, TOKENS, C))[0], NormWeights(*draw(*[(C,)] * 4))
    mlp = [*(t.detach() for t in draw((H, C), (H,), (C, H), (C,))), *draw((H,), (H,), (C,), (C,))]
    adapter = draw((C,), (C,), (1, C), (1,), (R, C), (R,), (C, R), (C,))
    return x, MlpWeights(*mlp), norm, AdapterWeights(*adapter)


def _step(function, inputs, train):
    x, mlp, norm, adapter = inputs
    y, prompt = function(x, mlp, norm=norm, adapter=adapter)
    if not train:
        return y, prompt
    trained = [t for t in (x, *mlp, *norm, *adapter) if t.requires_grad]
    return (y, prompt, *torch.autograd.grad(y.sum() + prompt.sum(), trained))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("train", [False, True], ids=["forward", "step"])
@pytest.mark.parametrize("name", ["pointpeft", "reference"])
def bench_adapted_mlp(compare, name, train, device):
    function = frozen_mlp if name == "pointpeft" else frozen_mlp_reference
    inputs = _inputs(device, train)
    expected = _step(frozen_mlp_reference, inputs, train)
    compare(
        f"frozen_mlp with adapter {'step' if train else 'forward'} {BATCH}x{TOKENS}",
        lambda: _step(function, inputs, train),
        lambda got: all(torch.allclose(g, e, rtol=1e-3, atol=2e-3) for g, e in zip(got, expected, strict=True)),
        device=device,
        bytes=(6 if train else 2) * inputs[0].nbytes,
    )
