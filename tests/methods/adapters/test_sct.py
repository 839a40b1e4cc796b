"""SCT: a map of the channels that stand out."""

import pytest
import torch

from pointpeft import create_model, load_adapter
from pointpeft.methods import TrainingClouds
from pointpeft.methods.adapters.sct import salience
from pointpeft.runs.config import FinetuneConfig
from pointpeft.runs.finetune import finetune
from tests.clouds import TINY, TINY_MODEL
from tests.data.sets.test_s3dis import write_rooms
from tests.methods.tools import block_input, cloud, make, stirred

SIZES = tuple(pair for pair in TINY_MODEL if not pair.startswith("rank"))
QUICK = {"checkpoint": "none", "device": "cpu", "quiet": True, "probe": False}


@torch.no_grad()
def test_a_block_is_its_equation():
    model = stirred("sct", channels=3, scale=0.7)
    block = model.backbone.blocks[0]
    block.salient.channels.copy_(torch.tensor([2, 50, 95]))
    x, ctx = block_input(model)
    h = x + ctx.pos
    h = h + block.attn(block.norm1(h))
    chosen = h[..., [2, 50, 95]]
    h[..., [2, 50, 95]] = chosen + 0.7 * (chosen @ block.salient.linear.weight.T + block.salient.linear.bias)
    expected = h + block.mlp(block.norm2(h))
    torch.testing.assert_close(block(x, ctx), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_salience_is_the_mean_over_classes_of_norms_in_the_frozen_backbone():
    model = stirred("sct", channels=5)
    xyz, labels = cloud(5), torch.tensor([0, 3, 3, 0, 3])
    found = salience(model, [(xyz[:2], labels[:2]), (xyz[2:], labels[2:])])
    plain = make("linear").backbone
    patches, centers = plain.group(xyz)
    x, pos = plain.patch_embed(patches), plain.pos_embed(centers)
    x = torch.cat([model.backbone.cls_token.expand(5, -1, -1), x], 1)
    pos = torch.cat([model.backbone.cls_pos.expand(5, -1, -1), pos], 1)
    for i, block in enumerate(plain.blocks):
        x = x + pos
        x = x + block.attn(block.norm1(x))
        tokens = x[:, 1:]  # [5, G, C]
        norms = torch.stack([tokens[labels == label].flatten(0, 1).norm(dim=0) for label in (0, 3)])
        torch.testing.assert_close(found[i].float(), norms.mean(0), rtol=1e-4, atol=1e-4)
        x = x + block.mlp(block.norm2(x))


def test_preparing_takes_the_most_salient_channels_and_leaves_the_rest_alone():
    model = make("sct", channels=4).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batches = [(cloud(3), torch.tensor([0, 1, 1]))]
    model.method.prepare(model, TrainingClouds(lambda: iter(batches)))
    found = salience(model, batches)
    for block, row in zip(model.backbone.blocks, found, strict=True):
        channels = block.salient.channels
        others = torch.ones(96, dtype=torch.bool).index_fill(0, channels, False)
        assert channels.tolist() == sorted(set(channels.tolist()))
        assert row[channels].min() >= row[others].max()
    assert model.training
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.endswith("salient.channels") for name in changed)


def test_training_clouds_iterate_over_points_alone_and_more_than_once():
    clouds = TrainingClouds(lambda: iter([(cloud(2), torch.tensor([0, 1]))]))
    for _ in range(2):
        (points,) = clouds
        assert torch.equal(points, cloud(2))


def test_preparing_needs_clouds():
    with pytest.raises(ValueError, match="at least one cloud"):
        salience(make("sct"), [])


def channels_of(folder):
    return [block.salient.channels for block in load_adapter(folder / "adapter").backbone.blocks]


def test_training_chooses_the_channels_and_the_adapter_holds_them(clouds_folder, tmp_path):
    config = FinetuneConfig(data=str(clouds_folder), method="sct", set=SIZES, output=tmp_path / "run", **QUICK, **TINY)
    channels = channels_of(finetune(config).folder)
    assert all(len(chosen) == 8 for chosen in channels)  # a quarter of 32
    assert any(not torch.equal(chosen, torch.arange(8)) for chosen in channels)


def test_rooms_choose_channels_too(tmp_path):
    config = FinetuneConfig(
        data=str(write_rooms(tmp_path / "rooms")), task="semantic_segmentation", method="sct", set=SIZES,
        output=tmp_path / "run", columns_per_epoch=16, **QUICK,
        **{**TINY, "epochs": 1, "num_points": 128, "val_fraction": 0.4},
    )  # fmt: skip
    assert any(not torch.equal(chosen, torch.arange(8)) for chosen in channels_of(finetune(config).folder))


def test_the_published_size_takes_96_channels():
    model = create_model("point_mae", "sct", 15, device="meta")
    assert len(model.backbone.blocks[0].salient.channels) == 96


@pytest.mark.parametrize("value", [0, 97])
def test_bad_options_are_named(value):
    with pytest.raises(ValueError, match="channels must be at"):
        make("sct", channels=value)
