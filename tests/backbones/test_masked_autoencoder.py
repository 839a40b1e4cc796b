import pytest
import torch

from pointpeft.backbones import create_backbone
from pointpeft.backbones.masked_autoencoder import MaskedAutoencoder

SMALL = {"num_groups": 16, "group_size": 8}


def make(**options):
    torch.manual_seed(0)
    return MaskedAutoencoder(create_backbone("point_mae_tiny", **SMALL), **options)


def test_pretraining_lowers_the_loss(generator):
    model, xyz = make(), torch.rand(4, 128, 3, generator=generator)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    losses = []
    for _ in range(15):
        loss = model(xyz, torch.Generator().manual_seed(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_rebuilt_patches_are_the_hidden_ones(generator):
    model, xyz = make(mask_ratio=0.75), torch.rand(2, 128, 3, generator=generator)
    rebuilt, true = model.rebuild(xyz, torch.Generator().manual_seed(1))
    assert rebuilt.shape == true.shape == (2, 12, 8, 3)
    patches, _ = model.backbone.group(xyz)
    for cloud, groups in zip(true, patches, strict=True):
        assert all(any(torch.equal(patch, group) for group in groups) for patch in cloud)


def test_a_mask_follows_its_generator(generator):
    model, xyz = make().eval(), torch.rand(2, 128, 3, generator=generator)
    with torch.no_grad():
        first, again, other = (model(xyz, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_published_names_go_round():
    source, target = make(), make()
    with torch.no_grad():
        for p in source.parameters():
            p.normal_()
    state = source.published_state_dict()
    assert {key.split(".")[0] for key in state} == {
        "MAE_encoder", "MAE_decoder", "decoder_pos_embed", "increase_dim", "mask_token",
    }  # fmt: skip
    target.load_published(state)
    assert all(torch.equal(a, b) for key, a in state.items() for b in [target.published_state_dict()[key]])
    del state["mask_token"]
    with pytest.raises(ValueError, match=r"missing .*mask_token"):
        target.load_published(state)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -1.0])
def test_a_mask_must_hide_some(ratio):
    with pytest.raises(ValueError, match="mask_ratio must hide"):
        make(mask_ratio=ratio)
