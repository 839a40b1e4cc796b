"""PointLoRA's block, its selection of tokens at two scales, and the sign of its loss."""

import pytest
import torch
import torch.nn.functional as F

from pointpeft.backbones.context import Context
from pointpeft.ops import sample_and_group
from tests.methods.tools import cloud, make, stirred


def mlp(layers, x):
    return layers[2](F.gelu(layers[0](x)))


@torch.no_grad()
def test_the_model_is_the_published_one():
    model = stirred("point_lora", noise=0.05, rank=4)
    backbone, shared, selector = model.backbone, model.backbone.shared_mlps, model.backbone.selector
    xyz = cloud(3)
    tokens, positions, chosen, chosen_pos = [], [], [], []
    for groups, size, kept in ((16, 8, 4), (8, 16, 1)):
        grouped = sample_and_group(xyz, groups, size)
        tokens.append(backbone.patch_embed(grouped.patches))
        positions.append(backbone.pos_embed(grouped.centers))
        p = torch.sigmoid(selector.fc2(F.relu(selector.fc1(tokens[-1]))))[..., 0]
        best = p.topk(kept, dim=1).indices
        rows = torch.arange(3)[:, None]
        chosen.append(tokens[-1][rows, best])
        chosen_pos.append(positions[-1][rows, best])
    x = torch.cat([backbone.cls_token.expand(3, -1, -1), tokens[0], *chosen], 1)
    pos = torch.cat([backbone.cls_pos.expand(3, -1, -1), positions[0], *chosen_pos], 1)
    for block in backbone.blocks:
        x = x + pos
        x[:, 1:17] += mlp(shared.patches, x[:, 1:17])
        x[:, 17:] += mlp(shared.selected, x[:, 17:])
        u = block.norm1(x)
        qkv = block.attn.qkv(u) + u @ block.lora_qkv.a.T @ block.lora_qkv.b.T + mlp(shared.qkv, u)
        y = block.attn.attend(qkv)
        x = x + block.attn.proj(y) + y @ block.lora_proj.a.T @ block.lora_proj.b.T + mlp(shared.proj, y)
        x = x + block.mlp(block.norm2(x))
    x = backbone.norm(x)
    expected = model.head(torch.cat([x[:, 0], x[:, 1:].amax(1)], -1))
    torch.testing.assert_close(model(xyz), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("quirks", ["none", "published"])
def test_the_selection_loss_decides_the_scores_but_with_the_published_sign(quirks):
    model = stirred("point_lora", quirks=quirks).train()
    selector, xyz = model.backbone.selector, cloud(4)
    optimizer = torch.optim.SGD(selector.parameters(), 20.0)

    def entropy():
        model(xyz)
        return abs(model.aux_losses()["selection"].item())

    start = entropy()
    for _ in range(20):
        model(xyz)
        optimizer.zero_grad()
        model.aux_losses()["selection"].backward()
        optimizer.step()
    assert (entropy() < start) == (quirks == "none")


def test_the_selection_loss_is_the_entropy_of_the_scores():
    model = stirred("point_lora", keep=(0.25,), selection_weight=0.5)
    xyz = cloud(3)
    with torch.no_grad():
        model(xyz)
        tokens = model.backbone.patch_embed(model.backbone.group(xyz)[0])
        p = torch.sigmoid(model.backbone.selector.fc2(F.relu(model.backbone.selector.fc1(tokens)))).double()
    expected = -(p * p.log() + (1 - p) * (1 - p).log()).mean()
    assert model.aux_losses()["selection"].item() == pytest.approx(0.5 * expected.item(), rel=1e-4)


def test_shares_of_the_patches_are_selected():
    model = make("point_lora", keep=(0.5, 0.25, 0.25))
    backbone, xyz = model.backbone, cloud()
    patches, centers = backbone.group(xyz)
    ctx = Context(xyz, centers)
    x = backbone.embed(ctx, patches)
    with torch.no_grad():
        out = backbone.selector(x, ctx)
    assert ctx.num_suffix == 8 + 2 + 1
    assert out.shape[1] == ctx.pos.shape[1] == 1 + 16 + 11
    assert torch.equal(out[:, :17], x)


def test_merging_leaves_no_low_rank_updates():
    model = stirred("point_lora", noise=0.05)
    with torch.no_grad():
        before = model(cloud())
        after = model.merge()(cloud())
    assert (after - before).abs().max() <= 1e-4 * before.abs().max()
    assert not any("lora_" in key for key in model.state_dict())


@pytest.mark.parametrize(
    ("option", "value"),
    [("rank", 0), ("hidden", 0), ("keep", ()), ("keep", (0.5, 1.5)), ("selection_weight", -1.0), ("quirks", "paper")],
)
def test_bad_options_are_named(option, value):
    with pytest.raises(ValueError, match=option):
        make("point_lora", **{option: value})


def test_too_many_scales_are_named():
    with pytest.raises(ValueError, match="keep must have fewer scales for 16 patches, got 6"):
        make("point_lora", keep=(0.25,) * 6)
