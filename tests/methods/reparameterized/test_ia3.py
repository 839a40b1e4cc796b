"""(IA)³: rescaled keys, values and hidden activations."""

import torch
import torch.nn.functional as F

from tests.methods.tools import block_input, cloud, same_at_start, stirred


@torch.no_grad()
def test_a_block_is_its_equation():
    model = stirred("ia3")
    block = model.backbone.blocks[0]
    x, ctx = block_input(model)
    h = x + ctx.pos
    q, k, v = (block.norm1(h) @ block.attn.qkv.weight.T).split(96, -1)
    q, k, v = (t.view(2, 17, 3, 32).transpose(1, 2) for t in (q, k * block.l_k, v * block.l_v))
    y = (torch.softmax(q @ k.transpose(-1, -2) / 32**0.5, -1) @ v).transpose(1, 2).reshape(2, 17, 96)
    h = h + block.attn.proj(y)
    expected = h + block.mlp.fc2(block.l_ff * F.gelu(block.mlp.fc1(block.norm2(h))))
    torch.testing.assert_close(block(x, ctx), expected, rtol=1e-4, atol=1e-4)


def test_it_starts_as_the_backbone():
    assert same_at_start("ia3") <= 1e-5


@torch.no_grad()
def test_merging_strong_scales_keeps_the_logits():
    model = stirred("ia3", noise=0.5)
    before = model(cloud())
    assert (model.merge()(cloud()) - before).abs().max() <= 1e-4 * before.abs().max()
