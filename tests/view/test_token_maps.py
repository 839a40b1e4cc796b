import pytest
import torch

from pointpeft import create_model
from pointpeft.methods.adapters.dapt import SCALE
from pointpeft.methods.adapters.dyt import KEPT
from pointpeft.methods.prompts.memory_bank import build_memory_bank, set_memory_bank
from pointpeft.view.token_maps import ATTENTION, PROMPTS, observe

SMALL = {"depth": 2, "num_groups": 16, "group_size": 8}


def made(method, backbone="point_mae_tiny", **options):
    torch.manual_seed(3)
    model = create_model(backbone, method, 3, **SMALL, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture
def xyz(generator):
    return torch.randn(100, 3, generator=generator)


@pytest.mark.parametrize("method", ["dapt", "dyt", "point_peft", "prefix", "unipelt", "vpt"])
def test_observing_leaves_the_model_and_its_logits_as_they_are(method, xyz):
    model = made(method)
    with torch.no_grad():
        before = model(xyz[None])[0]
    torch.testing.assert_close(observe(model, xyz).output, before, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(model(xyz[None])[0], before)


@pytest.mark.parametrize(
    ("method", "layers"),
    [
        ("linear", {ATTENTION}),
        ("vpt", {ATTENTION, PROMPTS}),
        ("idpt", {ATTENTION, PROMPTS}),
        ("point_peft", {ATTENTION, PROMPTS}),
        ("point_lora", {ATTENTION, PROMPTS}),
        ("prefix", {ATTENTION, PROMPTS}),
        ("unipelt", {ATTENTION, PROMPTS}),
        ("dapt", {ATTENTION, PROMPTS, SCALE}),
        ("dyt", {ATTENTION, KEPT}),
    ],
)
def test_a_method_shows_what_it_has(method, layers, xyz):
    found = observe(made(method), xyz).layers
    assert set(found) == layers
    assert all(values.shape == (100,) and torch.isfinite(values).all() for values in found.values())


@pytest.mark.parametrize("backbone", ["point_bert", "recon", "point_gpt"])
def test_every_backbone_shows_its_attention(backbone, xyz):
    assert torch.isfinite(observe(made("linear", backbone), xyz).layers[ATTENTION]).all()


def test_the_attention_is_that_of_the_class_token_to_the_patches(xyz):
    """Where the last block's queries and keys are zero, all tokens get the same share; a point gets its patches'."""
    model = made("linear")
    with torch.no_grad():
        model.backbone.blocks[-1].attn.qkv.weight.zero_()
    found = observe(model, xyz).layers[ATTENTION]
    torch.testing.assert_close(found, torch.full((100,), 1 / 17))  # 16 patches and a class token


@pytest.mark.parametrize("placement", ["end", "after_prefix"])
def test_the_influence_of_prompts_is_their_share_of_the_attention(placement, xyz):
    model = made("vpt", num_prompts=4, placement=placement)
    with torch.no_grad():
        for block in model.backbone.blocks:
            block.attn.qkv.weight.zero_()
    found = observe(model, xyz).layers
    torch.testing.assert_close(found[PROMPTS], torch.full((100,), 4 / 21))
    torch.testing.assert_close(found[ATTENTION], torch.full((100,), 1 / 21))


@pytest.mark.parametrize("method", ["prefix", "unipelt"])
def test_a_learned_prefix_is_a_share_of_the_attention(method, xyz):
    """Where all queries are zero, every key gets the same share: 16 patches, a class token, and the prefix."""
    model = made(method, num_prompts=4)
    with torch.no_grad():
        for block in model.backbone.blocks:
            block.attn.qkv.weight.zero_()
            if method == "unipelt":
                block.lora_q.b.weight.zero_()
    found = observe(model, xyz).layers
    torch.testing.assert_close(found[PROMPTS], torch.full((100,), 4 / 21))
    torch.testing.assert_close(found[ATTENTION], torch.full((100,), 1 / 21))


def test_a_prefix_draws_the_attention_that_its_keys_ask_for(xyz):
    """Keys that equal the patches' mean query times a large number leave the patches next to nothing."""
    model = made("prefix", num_prompts=4)
    block = model.backbone.blocks[-1]
    queries = []
    hook = block.attn.qkv.register_forward_hook(lambda _, given, out: queries.append(out[0, :, :96].mean(0)))
    with torch.no_grad():
        model(xyz[None])
        hook.remove()
        before = observe(model, xyz).layers[ATTENTION]
        block.keys.copy_((1e3 * queries[0]).expand_as(block.keys))
    assert (observe(model, xyz).layers[ATTENTION] < 0.01 * before.min()).all()


def test_a_causal_model_shows_what_its_mask_lets_through(xyz):
    """Where queries are zero, token t, from 0, looks at t + 1 tokens alike; two stand before the 16 patches."""
    model = made("linear", "point_gpt")
    with torch.no_grad():
        model.backbone.blocks[-1].attn.qkv.weight.zero_()
        model.backbone.blocks[-1].attn.qkv.bias.zero_()
    found = observe(model, xyz).layers[ATTENTION]
    seen = [sum(1 / (t + 1) for t in range(patch, 18)) / 18 for patch in range(2, 18)]
    assert found.max().item() == pytest.approx(seen[0], rel=1e-3)
    assert found.min().item() == pytest.approx(seen[-1], rel=1e-3)


def test_the_scale_is_carried_over_from_the_patches(xyz):
    model = made("dapt")
    with torch.no_grad():
        for block, value in zip(model.backbone.blocks, (1.0, 3.0), strict=True):
            block.adapter.scale.weight.zero_()
            block.adapter.scale.bias.fill_(value)
    torch.testing.assert_close(observe(model, xyz).layers[SCALE], torch.full((100,), 2.0))


def test_what_dyt_keeps_is_what_its_dispatchers_choose(xyz):
    model = made("dyt")
    with torch.no_grad():
        for block, value in zip(model.backbone.blocks, (1.0, -1.0), strict=True):
            block.dispatcher.weight.zero_()
            block.dispatcher.bias.fill_(value)
    torch.testing.assert_close(observe(model, xyz).layers[KEPT], torch.full((100,), 0.5))


def test_a_cloud_recalls_itself_first(generator):
    clouds = torch.randn(4, 100, 3, generator=generator) * torch.tensor([[[1.0]], [[2.0]], [[0.5]], [[3.0]]])
    model = made("point_peft")
    assert observe(model, clouds[2]).memory == []
    set_memory_bank(model, build_memory_bank(model, [clouds]))
    memory = observe(model, clouds[2]).memory
    assert memory[0][0] == 2
    assert memory[0][1] == pytest.approx(1, abs=1e-4)
    assert [cosine for _, cosine in memory] == sorted((cosine for _, cosine in memory), reverse=True)
    assert len(memory) == 4
