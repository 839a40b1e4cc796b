"""Point-PEFT's memory, its frozen feature, and what the published quirks do."""

import pytest
import torch
import torch.nn.functional as F

from pointpeft import create_model, load_adapter, save_adapter
from pointpeft.methods import build_memory_bank, set_memory_bank

SMALL = {"num_groups": 16, "group_size": 8, "drop_path": 0.0}


def make(**options):
    torch.manual_seed(0)
    return create_model("point_mae_tiny", "point_peft", 3, **SMALL, **options)


def shake(model):
    """Moves all that trains, as training would."""
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p), alpha=0.1)
    return model


def test_the_bank_holds_features_of_the_backbone_as_pre_trained():
    model = make().eval()
    backbone = create_model("point_mae_tiny", "full", 3, **SMALL).eval().backbone
    backbone.load_state_dict(model.backbone.state_dict(), strict=False)
    shake(model)
    clouds = torch.randn(5, 96, 3)
    bank = build_memory_bank(model, clouds.split(2))
    patches, centers = backbone.group(clouds)
    x, pos = backbone.patch_embed(patches), backbone.pos_embed(centers)
    for block in backbone.blocks:  # no class token: the pre-training has none
        x = x + pos
        x = x + block.attn(block.norm1(x))
        x = x + block.mlp(block.norm2(x))
    expected = F.normalize(backbone.norm(x).amax(1), dim=-1).T
    torch.testing.assert_close(bank, expected, rtol=1e-4, atol=1e-5)
    assert not model.training


def test_retrieval_is_its_equation():
    model = make(num_prompts=5)
    bank = F.normalize(torch.randn(96, 7), dim=0)
    set_memory_bank(model, bank)
    f = torch.randn(2, 96)
    recalled = model.backbone.prior.retrieve(f)
    for row, feature in zip(recalled, f, strict=True):
        scores = (feature / feature.norm()) @ bank
        best = scores.argsort(descending=True)[:3]
        torch.testing.assert_close(row[0], feature)
        torch.testing.assert_close(row[1], bank[:, best] @ scores[best].softmax(0))
        torch.testing.assert_close(row[2:], bank[:, best].T)


def test_the_bank_matters_and_comes_back_from_disk(tmp_path):
    model = shake(make()).eval()
    xyz = torch.randn(3, 96, 3)
    with torch.no_grad():
        before = model(xyz)
        set_memory_bank(model, build_memory_bank(model, torch.randn(12, 96, 3).split(4)))
        after = model(xyz)
        assert not torch.allclose(before, after)
        save_adapter(model, tmp_path / "adapter")
        again = load_adapter(tmp_path / "adapter")
        assert again.method.bank_size == 12
        assert torch.equal(again(xyz), after)


@pytest.mark.parametrize("quirks", ["none", "published"])
def test_only_the_published_quirks_mix_clouds(quirks):
    model = shake(make(quirks=quirks, bank_size=20)).eval()
    xyz = torch.randn(4, 96, 3)
    inputs = {"pooled_feature": torch.randn(4, 96)} if quirks == "published" else {}
    others = xyz.clone()
    others[:3] = torch.randn(3, 96, 3)
    with torch.no_grad():
        moved = (model(xyz, **inputs)[3] - model(others, **inputs)[3]).abs().max()
    assert (moved > 1e-3) == (quirks == "published")


def test_wrong_use_is_named():
    with pytest.raises(ValueError, match="quirks must be one of none, published"):
        make(quirks="official")
    with pytest.raises(ValueError, match="attention_rank must be a multiple"):
        make(attention_rank=7)
    with pytest.raises(ValueError, match=r"bank must be floating, \(96, M\)"):
        set_memory_bank(make(), torch.zeros(95, 4))
    with pytest.raises(ValueError, match="adapted by 'point_peft', got 'linear'"):
        build_memory_bank(create_model("point_mae_tiny", "linear", 3), [])
    with pytest.raises(ValueError, match="at least one batch"):
        build_memory_bank(make(), [])
    with pytest.raises(ValueError, match="takes the inputs"):
        make(quirks="published")(torch.randn(2, 96, 3))
