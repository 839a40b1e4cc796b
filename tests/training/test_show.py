import base64
import json
import re

import pytest
import torch

from pointpeft import create_model
from pointpeft.training import show

SMALL = {"depth": 2, "num_groups": 16, "group_size": 8}


def made(method, backbone="point_mae_tiny"):
    torch.manual_seed(3)
    model = create_model(backbone, method, 3, **SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


def test_layers_leave_the_model_and_its_logits_as_they_are(generator):
    xyz = torch.randn(100, 3, generator=generator)
    model = made("dapt")
    with torch.no_grad():
        before = model(xyz[None])[0]
    logits, found = show.layers(model, xyz)
    torch.testing.assert_close(logits, before, rtol=1e-4, atol=1e-5)
    assert set(found) == {show.ATTENTION, show.SCALE}
    with torch.no_grad():
        assert torch.equal(model(xyz[None])[0], before)


@pytest.mark.parametrize("method", ["linear", "vpt", "idpt"])
def test_methods_without_a_scale_have_attention(method, generator):
    _, found = show.layers(made(method), torch.randn(100, 3, generator=generator))
    assert set(found) == {show.ATTENTION}
    assert found[show.ATTENTION].shape == (100,)


@pytest.mark.parametrize("backbone", ["point_bert", "recon", "point_gpt"])
def test_every_backbone_shows_its_attention(backbone, generator):
    _, found = show.layers(made("linear", backbone), torch.randn(100, 3, generator=generator))
    assert torch.isfinite(found[show.ATTENTION]).all()


def test_the_attention_is_that_of_the_class_token_to_the_patches(generator):
    """Where the last block's queries and keys are zero, all tokens get the same share; a point gets its patches'."""
    model = made("linear")
    with torch.no_grad():
        model.backbone.blocks[-1].attn.qkv.weight.zero_()
    _, found = show.layers(model, torch.randn(100, 3, generator=generator))
    torch.testing.assert_close(found[show.ATTENTION], torch.full((100,), 1 / 17))  # 16 patches and a class token


def test_the_scale_is_carried_over_from_the_patches(generator):
    model = made("dapt")
    with torch.no_grad():
        for block, value in zip(model.backbone.blocks, (1.0, 3.0), strict=True):
            block.adapter.scale.weight.zero_()
            block.adapter.scale.bias.fill_(value)
    _, found = show.layers(model, torch.randn(100, 3, generator=generator))
    torch.testing.assert_close(found[show.SCALE], torch.full((100,), 2.0))


def test_the_page_holds_clouds_and_layers_and_no_reference(generator):
    xyz = torch.randn(100, 3, generator=generator)
    card = show.card(made("dapt"), xyz, ("a", "b", "c</script>"), "x</script>.ply", "a")
    text = show.page([card], ("a", "b", "c</script>"), "y")
    assert text.count("</script>") == 1
    assert not re.search(r"(src|href|@import|url\()", text)
    entry = json.loads(re.search(r"const clouds = (\[.*?\]);\n", text).group(1))[0]
    assert set(entry["layers"]) == {show.CLASS, show.ATTENTION, show.SCALE}
    layer = entry["layers"][show.ATTENTION]
    values = torch.frombuffer(bytearray(base64.b64decode(layer["values"])), dtype=torch.uint8) / 255
    expected = card["found"][show.ATTENTION]
    torch.testing.assert_close(values * (layer["high"] - layer["low"]) + layer["low"], expected, rtol=0, atol=1e-3)


def test_page_and_picture_are_written(tmp_path, generator):
    cards = [show.card(made("dapt"), torch.randn(60, 3, generator=generator), "abc", f"{i}.ply") for i in range(2)]
    html, png = show.write(tmp_path / "show", cards, "abc", "z")
    assert html.read_text().startswith("<!doctype html>")
    assert png.read_bytes()[:4] == b"\x89PNG"
