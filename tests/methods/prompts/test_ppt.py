"""PPT against its equations, and where its prompts stand."""

import pytest
import torch
import torch.nn.functional as F

from pointpeft import create_model
from tests.methods.tools import SMALL, cloud, make, stirred


def network(layers, x):
    return F.linear(F.gelu(F.linear(x, layers[0].weight, layers[0].bias)), layers[2].weight, layers[2].bias)


@torch.no_grad()
def test_the_tokens_are_those_of_the_published_loop():
    model = stirred("ppt", noise=0.05, num_prompts=12, prompt_size=10)
    backbone, shared = model.backbone, model.backbone.entry_transform
    xyz = cloud(3)
    x, pos = [backbone.cls_token.expand(3, -1, -1)], [backbone.cls_pos.expand(3, -1, -1)]
    for sizes in ((16, 8), (12, 10)):
        patches, centers = backbone.group(xyz, *sizes)
        assert patches.shape == (3, *sizes, 3)
        x.append(backbone.patch_embed(patches))
        pos.append(backbone.pos_embed(centers))
    x, pos = torch.cat(x, 1), torch.cat(pos, 1)
    for block in backbone.blocks:
        z = x + pos
        z[:, 1:17] += network(shared.patches, z[:, 1:17])
        z[:, 17:] += network(shared.prompts, z[:, 17:])
        y = z + block.attn(block.norm1(z))
        x = y + block.mlp(block.norm2(y)) + network(shared.tokens, y)
    x = backbone.norm(x)
    expected = torch.cat([x[:, 0], x[:, 1:17].mean(1), x[:, 17:].mean(1)], -1)
    torch.testing.assert_close(model.forward_features(xyz), expected, rtol=1e-4, atol=1e-4)


def test_the_head_has_gelu():
    model = make("ppt")
    assert [type(layer).__name__ for layer in model.head.layers[:4]] == ["Linear", "BatchNorm1d", "GELU", "Dropout"]
    assert type(make("linear").head.layers[2]).__name__ == "ReLU"


@torch.no_grad()
def test_prompts_stand_where_patches_see_them():
    for backbone, layout in (("point_mae_tiny", (0, 16, 12)), ("point_gpt_tiny", (12, 16, 0))):
        model = create_model(backbone, "ppt", 4, **SMALL, num_prompts=12).eval()
        xyz = cloud(1)
        tokens, ctx = model.backbone(xyz)
        assert tuple(part.shape[1] for part in ctx.split(tokens)[1:]) == layout
        model.backbone.entry_transform.prompts[2].bias.normal_()  # moves the prompts
        moved, ctx = model.backbone(xyz)
        patches = [ctx.split(t)[2] for t in (tokens, moved)]
        assert (patches[0] - patches[1]).abs().amax(-1).min() > 1e-3


def test_too_few_points_are_named():
    model = make("ppt", num_prompts=200)
    with pytest.raises(ValueError, match="num_prompts = 200"):
        model(cloud())


@pytest.mark.parametrize(("option", "value"), [("num_prompts", -1), ("prompt_size", -1), ("rank", 0)])
def test_bad_options_are_named(option, value):
    with pytest.raises(ValueError, match=option):
        make("ppt", **{option: value})
