"""iConFormer: a kernel per cloud over the nearest patches."""

import pytest
import torch
import torch.nn.functional as F

from pointpeft.methods.morton import morton_key
from tests.methods.tools import block_input, make, same_at_start, stirred


@torch.no_grad()
def test_the_adapter_is_its_equation():
    model = stirred("iconformer", rank=8, neighbors=4, scale=0.7)
    adapter = model.backbone.blocks[0].adapter
    x, ctx = block_input(model)
    u = x @ adapter.down.weight.T + adapter.down.bias
    v = u.clone()
    for b in range(2):
        kernel = adapter.kernel(u[b, 1:].mean(0)).view(4, 8)
        for i in range(16):
            near = (ctx.centers[b] - ctx.centers[b, i]).norm(dim=-1).argsort()[:4]
            assert near[0] == i
            v[b, 1 + i] = sum(kernel[j] * u[b, 1 + n] for j, n in enumerate(near))
    expected = 0.7 * (F.gelu(v) @ adapter.up.weight.T + adapter.up.bias)
    torch.testing.assert_close(adapter(x, ctx), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_curve_form_is_a_convolution_along_the_curve():
    model = stirred("iconformer", rank=8, neighbors=3, scale=0.7, form="curve")
    adapter = model.backbone.blocks[0].adapter
    x, ctx = block_input(model)
    u = x @ adapter.down.weight.T + adapter.down.bias
    v = u.clone()
    for b in range(2):
        centers = ctx.centers[b]
        low = centers.amin(0)
        cells = ((centers - low) / (centers.amax(0) - low).max() * 65535).long()
        order = morton_key(cells).argsort()
        kernel = adapter.kernel(u[b, 1:].mean(0)).view(3, 8)
        row = u[b, 1:][order].T[None]  # [1, R, G]
        v[b, 1:][order] = F.conv1d(row, kernel.T[:, None], padding=1, groups=8)[0].T
    expected = 0.7 * (F.gelu(v) @ adapter.up.weight.T + adapter.up.bias)
    torch.testing.assert_close(adapter(x, ctx), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("form", ["knn", "curve"])
def test_the_order_of_the_patches_does_not_matter(form):
    model = stirred("iconformer", form=form)
    adapter = model.backbone.blocks[0].adapter
    x, ctx = block_input(model)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    y = adapter(x, ctx)
    ctx.centers, ctx.cache = ctx.centers[:, order], {}
    again = adapter(torch.cat([x[:, :1], x[:, 1:][:, order]], 1), ctx)
    torch.testing.assert_close(again, torch.cat([y[:, :1], y[:, 1:][:, order]], 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["knn", "curve"])
def test_it_starts_as_the_backbone(form):
    assert same_at_start("iconformer", form=form) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"neighbors": 17}, "neighbors must be at most"),
        ({"neighbors": 0}, "neighbors must be at least"),
        ({"neighbors": 4, "form": "curve"}, "neighbors must be odd"),
        ({"rank": 0}, "rank"),
        ({"form": "grid"}, "form"),
    ],
)
def test_bad_options_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        make("iconformer", **options)
