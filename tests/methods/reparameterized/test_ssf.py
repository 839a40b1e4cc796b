"""SSF: a pair after each of eight kinds of layer."""

import torch
import torch.nn.functional as F

from pointpeft.methods.reparameterized.scale_shift import ScaleShift
from tests.methods.tools import block_input, cloud, stirred


def after(pair, x):
    return x * pair.gamma + pair.beta


@torch.no_grad()
def test_a_block_is_its_equation():
    model = stirred("ssf")
    block = model.backbone.blocks[0]
    x, ctx = block_input(model)
    h = x + ctx.pos
    u = after(block.ssf_norm1, F.layer_norm(h, (96,), block.norm1.weight, block.norm1.bias))
    qkv = after(block.ssf_qkv, u @ block.attn.qkv.weight.T)
    q, k, v = (t.view(2, 17, 3, 32).transpose(1, 2) for t in qkv.split(96, -1))
    y = (torch.softmax(q @ k.transpose(-1, -2) / 32**0.5, -1) @ v).transpose(1, 2).reshape(2, 17, 96)
    h = h + after(block.ssf_proj, block.attn.proj(y))
    u = after(block.ssf_norm2, F.layer_norm(h, (96,), block.norm2.weight, block.norm2.bias))
    expected = h + after(block.ssf_fc2, block.mlp.fc2(F.gelu(after(block.ssf_fc1, block.mlp.fc1(u)))))
    torch.testing.assert_close(block(x, ctx), expected, rtol=1e-4, atol=1e-4)


def test_pairs_start_near_one_and_zero():
    pairs = [part for part in stirred("ssf", noise=0.0).backbone.modules() if isinstance(part, ScaleShift)]
    assert len(pairs) == 6 * 6 + 2
    gamma, beta = torch.cat([p.gamma for p in pairs]), torch.cat([p.beta for p in pairs])
    for value, mean in ((gamma, 1.0), (beta, 0.0)):
        assert abs(value.mean().item() - mean) < 2e-3  # 6 528 draws: five deviations of the mean are 1.2e-3
        assert abs(value.std().item() - 0.02) < 2e-3


@torch.no_grad()
def test_merging_keeps_a_negative_scale_of_the_patches():
    model = stirred("ssf", noise=0.1)
    model.backbone.patch_transform.gamma[3] = -0.5
    before = model(cloud())
    after_merge = model.merge()(cloud())
    assert isinstance(model.backbone.patch_transform, ScaleShift)
    assert (after_merge - before).abs().max() <= 1e-4 * before.abs().max()


@torch.no_grad()
def test_merging_leaves_no_pair():
    model = stirred("ssf", noise=0.01).merge()
    assert not any(isinstance(part, ScaleShift) for part in model.modules())
