"""Prefix tuning: keys and values without queries."""

import pytest
import torch

from tests.methods.tools import block_input, make, stirred


@torch.no_grad()
def test_a_block_is_its_equation():
    model = stirred("prefix", num_prompts=5)
    block = model.backbone.blocks[0]
    x, ctx = block_input(model)
    h = x + ctx.pos
    q, k, v = (block.norm1(h) @ block.attn.qkv.weight.T).split(96, -1)
    k = torch.cat([block.keys.expand(2, -1, -1), k], 1)
    v = torch.cat([block.values.expand(2, -1, -1), v], 1)
    assert k.shape[1] == 17 + 5
    q, k, v = (t.view(2, -1, 3, 32).transpose(1, 2) for t in (q, k, v))
    y = (torch.softmax(q @ k.transpose(-1, -2) / 32**0.5, -1) @ v).transpose(1, 2).reshape(2, 17, 96)
    h = h + block.attn.proj(y)
    expected = h + block.mlp(block.norm2(h))
    torch.testing.assert_close(block(x, ctx), expected, rtol=1e-4, atol=1e-4)


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="num_prompts must be at least 1, got 0"):
        make("prefix", num_prompts=0)
