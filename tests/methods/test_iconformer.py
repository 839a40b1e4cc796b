"""iConFormer: a kernel per cloud over the nearest patches."""

import pytest
import torch
import torch.nn.functional as F

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
def test_the_order_of_the_patches_does_not_matter():
    model = stirred("iconformer")
    adapter = model.backbone.blocks[0].adapter
    x, ctx = block_input(model)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    y = adapter(x, ctx)
    ctx.centers, ctx.cache = ctx.centers[:, order], {}
    again = adapter(torch.cat([x[:, :1], x[:, 1:][:, order]], 1), ctx)
    torch.testing.assert_close(again, torch.cat([y[:, :1], y[:, 1:][:, order]], 1), rtol=1e-4, atol=1e-4)


def test_it_starts_as_the_backbone():
    assert same_at_start("iconformer") == 0


@pytest.mark.parametrize(("option", "value"), [("neighbors", 17), ("neighbors", 0), ("rank", 0)])
def test_bad_options_are_named(option, value):
    with pytest.raises(ValueError, match=option):
        make("iconformer", **{option: value})
