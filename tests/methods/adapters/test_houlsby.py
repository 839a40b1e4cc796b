"""Houlsby adapters: z + A(z) on the output of a sub-layer."""

import pytest
import torch
import torch.nn.functional as F

from tests.methods.tools import block_input, make, same_at_start, stirred


def bottleneck(part, x):
    return F.gelu(x @ part.down.weight.T + part.down.bias) @ part.up.weight.T + part.up.bias


@torch.no_grad()
def test_a_block_is_its_equation():
    model = stirred("houlsby", rank=8)
    block = model.backbone.blocks[0]
    x, ctx = block_input(model)
    h = x + ctx.pos
    z = block.attn(block.norm1(h))
    h = h + z + bottleneck(block.adapter_attn, z)
    z = block.mlp(block.norm2(h))
    expected = h + z + bottleneck(block.adapter_mlp, z)
    torch.testing.assert_close(block(x, ctx), expected, rtol=1e-4, atol=1e-4)


def test_places_choose_the_adapters():
    names = {name for name, _ in make("houlsby", places=("mlp",)).backbone.blocks[0].named_children()}
    assert "adapter_mlp" in names
    assert "adapter_attn" not in names


def test_it_starts_as_the_backbone():
    assert same_at_start("houlsby") == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [({"places": ()}, "places must be among"), ({"places": ("norm",)}, "places must be among"), ({"rank": 0}, "rank")],
)
def test_bad_options_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        make("houlsby", **options)
