"""GAPrompt against its equations: the shift of the cloud, the mixing of neighbourhoods, what depends on the batch."""

import pytest
import torch
import torch.nn.functional as F

from pointpeft.backbones.context import Context
from pointpeft.methods.prompts.shift_net import SHAPE, waves
from tests.methods.tools import cloud, make, stirred


@torch.no_grad()
def test_the_shift_is_a_multiple_of_the_coordinates_of_at_most_its_share():
    model = make("gaprompt", perturbation=0.1, point_prompts=3)
    transform, xyz = model.backbone.cloud_transform, cloud()
    xyz[:, 5] = 0
    ctx = Context(xyz, xyz[:, :0])
    moved = transform(xyz, ctx)
    assert moved.shape == (2, 131, 3)
    torch.testing.assert_close(moved[:, 128:], 5 * transform.points.expand(2, -1, -1))
    assert not moved[:, 5].any()
    assert ctx.cache[SHAPE].shape == (2, 1, 96)
    last = transform.shift.position[3]
    last.weight.zero_()
    last.bias.copy_(torch.tensor([1.0, 0.0, -2.0]))
    expected = xyz * (1 + 0.1 * torch.tensor([1.0, 0.0, -2.0]))
    torch.testing.assert_close(transform(xyz, ctx)[:, :128], expected)


def test_waves_are_ordered_by_frequency():
    xyz = cloud()
    expected = [xyz] + [f(2**k * xyz) for k in range(4) for f in (torch.sin, torch.cos)]
    torch.testing.assert_close(waves(xyz), torch.cat(expected, -1))


@torch.no_grad()
def test_neighbourhoods_mix_as_the_equation_says():
    model = stirred("gaprompt", noise=0.1)
    block = model.backbone.blocks[0]
    xyz = cloud(2)
    ctx = Context(xyz, xyz[:, :16], prefix=("cls",))
    x = torch.randn(2, 16 + 10, 96)
    patches, norm = x[:, 10:], block.out_transform[0]
    found = block.propagated(x, ctx)
    idx, centers, where = ctx.cache["gaprompt.near"]
    assert idx.shape == (2, 8, 4)
    for b in range(2):
        d = (ctx.centers[b, where[b]][:, None] - ctx.centers[b]).square().sum(-1)
        near = d.topk(4, largest=False).indices
        top = 2 * patches[b][near].amax(1)  # [8, C]
        v = (top - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
        v = F.gelu(v) + 0.3 * patches[b, where[b]]
        w = 1 / ((ctx.centers[b][:, None] - centers[b]).square().sum(-1) + 1e-8)
        expected = patches[b] + 0.3 * (w / w.sum(-1, keepdim=True)) @ v
        torch.testing.assert_close(found[b], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("quirks", "independent"), [("none", True), ("published", False)])
@torch.no_grad()
def test_only_the_published_indexing_mixes_the_clouds_of_a_batch(quirks, independent):
    model = stirred("gaprompt", noise=0.05, quirks=quirks)
    xyz = cloud(3)
    together, alone = model(xyz), torch.cat([model(one[None]) for one in xyz])
    assert torch.allclose(together, alone, rtol=1e-4, atol=1e-4) == independent


@torch.no_grad()
def test_the_head_reads_the_shape():
    model = stirred("gaprompt", noise=0.05)
    features = model.forward_features(cloud())
    ctx = Context(cloud(), cloud()[:, :0])
    model.backbone.cloud_transform(cloud(), ctx)
    torch.testing.assert_close(features[:, 2 * 96 :], ctx.cache[SHAPE][:, 0])
    assert model.head.layers[3].p == 0.6


@pytest.mark.parametrize(
    ("option", "value"),
    [("point_prompts", 0), ("num_prompts", 0), ("rank", 0), ("perturbation", 0.0), ("quirks", "paper")],
)
def test_bad_options_are_named(option, value):
    with pytest.raises(ValueError, match=option):
        make("gaprompt", **{option: value})


def test_another_way_of_mixing_in_a_yaml_file_is_named():
    with pytest.raises(ValueError, match="propagation_type must be permutation_after_attention"):
        type(make("gaprompt").method).yaml_options({"propagation_type": "replacement_before_attention"})
