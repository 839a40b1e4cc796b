import pytest
import torch

from benchmarks.conftest import DEVICES
from pointpeft.ops import patch_embed_statistics, patch_embed_statistics_reference

CANDIDATES = {"pointpeft": patch_embed_statistics, "reference": patch_embed_statistics_reference}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CANDIDATES)
def bench_patch_embed_statistics(compare, name, device):
    generator = torch.Generator().manual_seed(0)
    h1, h2, h3 = 128, 256, 512  # as published
    shapes = [(16, 128, 32, 3), (h1, 3), (h1,), (h1,), (h1,), (h2, h1), (h2,), (h3, 2 * h2), (h3,)]
    patches, w1, b1, gamma1, beta1, *rest = (
        (torch.randn(s, generator=generator) / s[-1] ** 0.5).to(device) for s in shapes
    )
    arguments = (patches, w1, b1, gamma1, beta1, 1e-5, *rest)
    expected = patch_embed_statistics_reference(*arguments)
    compare(
        "patch_embed_statistics 16x128x32",
        lambda: CANDIDATES[name](*arguments),
        lambda got: all(torch.allclose(g, e, rtol=1e-3, atol=1e-5) for g, e in zip(got, expected, strict=True)),
        device=device,
        bytes=patches.nbytes,
        flops=2 * patches.shape[:3].numel() * (3 * h1 + h1 * h1 + h1 * h2),
    )
