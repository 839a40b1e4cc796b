"""AdaptFormer: a scaled bottleneck beside the MLP, reading what the second norm reads."""

import pytest
import torch
import torch.nn.functional as F

from tests.methods.tools import block_input, make, same_at_start, stirred


@torch.no_grad()
def test_a_block_is_its_equation():
    model = stirred("adaptformer", rank=8, scale=0.7)
    block = model.backbone.blocks[0]
    x, ctx = block_input(model)
    h = x + ctx.pos
    h = h + block.attn(block.norm1(h))
    down, up = block.adapter.down, block.adapter.up
    a = F.relu(h @ down.weight.T + down.bias) @ up.weight.T + up.bias
    expected = h + block.mlp(block.norm2(h)) + 0.7 * a
    torch.testing.assert_close(block(x, ctx), expected, rtol=1e-4, atol=1e-4)


def test_it_starts_as_the_backbone():
    assert same_at_start("adaptformer") == 0


@torch.no_grad()
def test_dropout_acts_in_training_alone():
    model = stirred("adaptformer", dropout=0.5)
    block = model.backbone.blocks[0]
    x, _ = block_input(model)
    assert torch.equal(block.adapter(x), block.adapter(x))
    block.train()
    assert not torch.equal(block.adapter(x), block.adapter(x))


@pytest.mark.parametrize(("option", "value"), [("rank", 0), ("dropout", 1.0)])
def test_bad_options_are_named(option, value):
    with pytest.raises(ValueError, match=option):
        make("adaptformer", **{option: value})
