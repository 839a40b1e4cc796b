"""GFT against its equations: the graph of all tokens, and the attention that reads it."""

import pytest
import torch
import torch.nn.functional as F

from pointpeft import create_model
from pointpeft.methods.prompts.gft import nearest
from tests.methods.tools import cloud, make, stirred


def activated(layer, edges):
    weight, norm = layer[0].weight.flatten(1), layer[1]
    y = edges @ weight.T
    y = (y - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    return F.leaky_relu(y, 0.2)


@torch.no_grad()
def test_the_tokens_are_those_of_the_published_loop():
    model = stirred("gft", noise=0.1, num_prompts=5, k=4, layers=(0, 2), heads=2)
    backbone, graph = model.backbone, model.backbone.entry_transform
    xyz = cloud(3)
    patches, centers = backbone.group(xyz)
    prompts = graph.prompts.expand(3, -1, -1)
    x = torch.cat([backbone.cls_token.expand(3, -1, -1), prompts, backbone.patch_embed(patches)], 1)
    pos = torch.cat([backbone.cls_pos.expand(3, -1, -1), 0 * prompts, backbone.pos_embed(centers)], 1)
    h, features = x, []
    for layer in graph.convs:
        near = (h[:, :, None] - h[:, None]).norm(dim=-1).topk(4, largest=False).indices
        neighbors = torch.stack([h[b][near[b]] for b in range(3)])  # [B, T, 4, C]
        own = h[:, :, None].expand_as(neighbors)
        h = activated(layer, torch.cat([neighbors - own, own], -1)).amax(2)
        features.append(h)
    g = activated(graph.last, torch.cat(features, -1))
    for i, wrapped in enumerate(backbone.blocks):
        block = wrapped.block if i in (0, 2) else wrapped
        x = x + pos
        x = x + block.attn(block.norm1(x))
        x = x + block.mlp(block.norm2(x))
        if i in (0, 2):
            a = wrapped.attention
            q, k, v = a.query(a.q_norm(x)), a.key(a.kv_norm(g)), a.value(a.kv_norm(g))
            heads = [
                ((q[..., s] @ k[..., s].transpose(1, 2)) / 16**0.5).softmax(-1) @ v[..., s]
                for s in (slice(0, 16), slice(16, 32))
            ]
            x = x + F.gelu(a.proj(torch.cat(heads, -1)))
    x = backbone.norm(x)
    expected = torch.cat([x[:, 0], x[:, 1:6].mean(1), x[:, 6:].amax(1)], -1)
    torch.testing.assert_close(model.forward_features(xyz), expected, rtol=1e-3, atol=1e-3)


def test_neighbours_are_found_among_tokens_that_lie_close_together_far_from_the_origin():
    generator = torch.Generator().manual_seed(0)
    x = 100 + 1e-3 * torch.randn(2, 30, 16, generator=generator)
    wide = x.double()
    expected = (wide[:, :, None] - wide[:, None]).norm(dim=-1).topk(7, largest=False).indices
    assert torch.equal(nearest(x, 7), expected)


def test_blocks_that_a_backbone_lacks_are_left_out():
    assert make("gft").method.present(make("gft")) == [0, 3]
    with pytest.raises(ValueError, match="layers must name one of the 6 blocks"):
        make("gft", layers=(6,))


def test_a_head_that_divides_no_rank_is_named():
    with pytest.raises(ValueError, match="rank must be a multiple of heads = 5"):
        create_model("point_mae_tiny", "gft", 4, heads=5)


@pytest.mark.parametrize(
    ("option", "value"), [("num_prompts", 0), ("k", 0), ("rank", 0), ("layers", ()), ("layers", (1, 1))]
)
def test_bad_options_are_named(option, value):
    with pytest.raises(ValueError, match=option):
        make("gft", **{option: value})


def test_another_width_in_a_yaml_file_is_named():
    with pytest.raises(ValueError, match="emb_dim must be 256, got 128"):
        type(make("gft").method).yaml_options({"emb_dim": 128})
