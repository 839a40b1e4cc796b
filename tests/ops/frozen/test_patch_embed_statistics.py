import re

import pytest
import torch

from pointpeft.ops import patch_embed_statistics, patch_embed_statistics_reference

# batch, groups, points a group, widths
SHAPES = [(2, 5, 7, (20, 33, 40)), (1, 9, 32, (128, 256, 512)), (3, 4, 1, (16, 16, 16)), (1, 70, 33, (8, 8, 9))]


def case(shape, generator, dtype=torch.float64):
    batch, groups, size, (h1, h2, h3) = shape

    def draw(*size, fan=1):
        return (torch.randn(size, generator=generator, dtype=torch.float64) / fan**0.5).to(dtype)

    first = (draw(h1, 3, fan=3), draw(h1), 1 + 0.3 * draw(h1), draw(h1), 1e-5)
    return draw(batch, groups, size, 3), *first, draw(h2, h1, fan=h1), draw(h2), draw(h3, 2 * h2, fan=2 * h2), draw(h3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 3e-5)])
@pytest.mark.parametrize("given", [False, True])
def test_equals_the_reference(shape, dtype, tolerance, given, device, generator):
    arguments = case(shape, generator)
    h1 = shape[3][0]
    moments = (torch.zeros(h1, dtype=torch.float64), torch.ones(h1, dtype=torch.float64)) if given else None
    expected = patch_embed_statistics_reference(*arguments, moments)
    moments = tuple(t.to(device, dtype) for t in moments) if given else None
    converted = (t.to(device, dtype) if isinstance(t, torch.Tensor) else t for t in arguments)
    for a, e in zip(patch_embed_statistics(*converted, moments), expected, strict=True):
        assert a.dtype == dtype
        assert (a.double().cpu() - e).abs().max() <= tolerance * e.abs().max()


def test_short_types_are_measured_in_float32(generator):
    arguments = [t.bfloat16() if isinstance(t, torch.Tensor) else t for t in case(SHAPES[0], generator)]
    wide = [t.float() if isinstance(t, torch.Tensor) else t for t in arguments]
    for a, e in zip(patch_embed_statistics(*arguments), patch_embed_statistics(*wide), strict=True):
        assert torch.equal(a, e)


def test_one_point_has_no_variance(generator):
    arguments = case((1, 1, 1, (8, 8, 8)), generator, torch.float32)
    moments = patch_embed_statistics(*arguments)
    assert moments.var1.abs().max() <= 1e-10
    assert 0 <= moments.var3.min()
    assert moments.var3.max() <= 1e-5


def test_bad_input_names_the_argument(generator):
    arguments = list(case(SHAPES[0], generator))
    for patches, message in [
        (torch.zeros(2, 5, 3), "patches must have 4 dimensions, got shape (2, 5, 3)"),
        (torch.zeros(2, 0, 5, 3), "patches must hold points, got shape (2, 0, 5, 3)"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            patch_embed_statistics(patches, *arguments[1:])
