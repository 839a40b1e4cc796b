import pytest
import torch

from benchmarks.conftest import DEVICES
from pointpeft.ops import PatchEmbedWeights, patch_embed, patch_embed_reference

WIDTHS = (128, 256, 512, 384)  # as published
CANDIDATES = {"pointpeft": patch_embed, "reference": patch_embed_reference}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("name", CANDIDATES)
def bench_patch_embed(compare, name, batch, dtype, device):
    generator = torch.Generator().manual_seed(0)
    h1, h2, h3, c = WIDTHS
    shapes = [(h1, 3), (h1,), (h2, h1), (h2,), (h3, 2 * h2), (h3,), (c, h3), (c,)]
    weights = PatchEmbedWeights(
        *((torch.randn(s, generator=generator) / s[-1] ** 0.5).to(device, dtype) for s in shapes)
    )
    patches = torch.randn(batch, 128, 32, 3, generator=generator).to(device, dtype)
    expected = patch_embed_reference(patches.float(), PatchEmbedWeights(*(w.float() for w in weights)))
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    points = patches.shape[:3].numel()
    compare(
        f"patch_embed {batch}x128x32 {str(dtype).removeprefix('torch.')}",
        lambda: CANDIDATES[name](patches, weights),
        lambda tokens: float((tokens.float() - expected).abs().max()) <= tolerance * float(expected.abs().max()),
        device=device,
        bytes=patches.nbytes + expected.numel() * patches.element_size() + sum(w.nbytes for w in weights),
        flops=2 * points * (3 * h1 + h1 * h2 + h1 * h3 + h3 * c),  # what is left with the third map's halves folded
    )
