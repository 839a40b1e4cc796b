"""FacT: all updates out of a few shared factors."""

import pytest
import torch
import torch.nn.functional as F

from tests.methods.tools import block_input, cloud, make, stirred

PARTS = {"qkv": (3, 1), "proj": (1, 1), "fc1": (4, 1), "fc2": (1, 4)}  # parts of the output, parts of the input


def sigma(factors, part):
    if factors.form == "tt":
        return factors.sigma[part]
    return sum(factors.core[:, :, c] * factors.parts[c, part] for c in range(factors.core.shape[-1]))


def update(factors, first, outputs, inputs, scale):
    """ΔW, put together part by part."""
    rows = []
    for i in range(outputs):
        parts = [factors.u @ sigma(factors, first + i * inputs + j) @ factors.v for j in range(inputs)]
        rows.append(torch.cat([part.T for part in parts], 1))
    return scale * torch.cat(rows)


@torch.no_grad()
@pytest.mark.parametrize("form", ["tt", "tk"])
def test_a_block_is_its_equation(form):
    model = stirred("fact", form=form, rank=4, scale=0.5)
    block, factors = model.backbone.blocks[1], model.backbone.factors
    weights, first = {}, 12  # the second block's parts come after the twelve of the first
    for at, name in (("attn", "qkv"), ("attn", "proj"), ("mlp", "fc1"), ("mlp", "fc2")):
        layer = getattr(getattr(block, at), name).layer
        weights[name] = layer.weight + update(factors, first, *PARTS[name], 0.5)
        first += PARTS[name][0] * PARTS[name][1]
    assert first == 24
    x, ctx = block_input(model)
    h = x + ctx.pos
    q, k, v = (t.view(2, 17, 3, 32).transpose(1, 2) for t in (block.norm1(h) @ weights["qkv"].T).split(96, -1))
    y = (torch.softmax(q @ k.transpose(-1, -2) / 32**0.5, -1) @ v).transpose(1, 2).reshape(2, 17, 96)
    h = h + y @ weights["proj"].T + block.attn.proj.layer.bias
    hidden = F.gelu(block.norm2(h) @ weights["fc1"].T + block.mlp.fc1.layer.bias)
    expected = h + hidden @ weights["fc2"].T + block.mlp.fc2.layer.bias
    torch.testing.assert_close(block(x, ctx), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["tt", "tk"])
def test_it_starts_as_the_backbone(form):
    model = make("fact", form=form)
    features = model.forward_features(cloud())
    for block in model.backbone.blocks:
        for part in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
            part.scale = 0.0
    assert torch.equal(model.forward_features(cloud()), features)


@torch.no_grad()
@pytest.mark.parametrize("form", ["tt", "tk"])
def test_merging_strong_updates_keeps_the_logits_and_plain_layers(form):
    model = stirred("fact", form=form, noise=0.1)
    before = model(cloud())
    after = model.merge()(cloud())
    assert (after - before).abs().max() <= 1e-4 * before.abs().max()
    assert not any("factors" in name or "layer" in name for name in model.backbone.state_dict())


def test_middle_factors_start_as_published():
    sigma = make("fact").backbone.factors.sigma.detach()
    for part, bound in ((0, 1 / 16**0.5), (7, 1 / 16**0.5), (8, 1 / 64**0.5), (11, 1 / 64**0.5)):
        assert 0.9 * bound < sigma[part].abs().max() <= bound


@pytest.mark.parametrize(
    ("options", "said"),
    [({"form": "cp"}, "form"), ({"rank": 0}, "rank"), ({"dropout": 1.0}, "dropout"), ({"mlp_ratio": 2.5}, "mlp_ratio")],
)
def test_bad_options_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        make("fact", **options)
