"""Weight updates through peft: where they sit, their equations, and what happens without peft."""

import sys

import pytest
import torch

from pointpeft import create_model
from pointpeft.methods import method_class, method_names
from tests.methods.tools import SMALL, cloud, make, stirred

HF = [name for name in method_names() if method_class(name).packages == ("peft",)]


def test_without_peft_the_error_names_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr("pointpeft.methods.base.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"method 'lora' needs the package peft: pip install 'pointpeft\[peft\]'"):
        create_model("point_mae_tiny", "lora", 3)


peft = pytest.importorskip("peft", reason="the optional package peft is not installed")


@pytest.mark.parametrize("name", HF)
def test_the_start_is_the_backbone(name):
    model = make(name)
    plain = make("linear")
    state = {key.replace(".base_layer.", "."): value for key, value in model.state_dict().items()}
    missing = plain.load_state_dict(state, strict=False).missing_keys
    assert not missing
    with torch.no_grad():
        torch.testing.assert_close(model(cloud()), plain(cloud()), rtol=1e-4, atol=1e-5)


def test_lora_is_its_equation():
    model = stirred("lora", rank=4, alpha=8)
    layer = model.backbone.blocks[1].attn.qkv
    x = torch.randn(2, 5, 96)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = x @ layer.base_layer.weight.T + 8 / 4 * (x @ a.T @ b.T)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


def test_vera_is_its_equation():
    model = stirred("vera", rank=4)
    layer = model.backbone.blocks[2].mlp.fc1
    x = torch.randn(2, 5, 96)
    a, b = layer.vera_A["default"][:, :96], layer.vera_B["default"][:384]
    d, scale = layer.vera_lambda_d["default"], layer.vera_lambda_b["default"]
    expected = layer.base_layer(x) + scale * ((d * (x @ a.T)) @ b.T)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


def test_the_random_maps_of_vera_are_saved_once_and_come_back():
    first, second = make("vera", projection_seed=3), make("vera", projection_seed=4)
    assert not torch.equal(first.backbone.vera.get_extra_state(), second.backbone.vera.get_extra_state())
    second.load_state_dict(first.state_dict())
    layers = [part for part in second.backbone.blocks.modules() if hasattr(part, "vera_A")]
    for layer in layers:  # all 24 look at the maps that were loaded
        assert torch.equal(layer.vera_A["default"], first.backbone.vera.a["default"])
    assert sum("vera_A" in key for key in second.state_dict()) == 0
    with torch.no_grad():
        assert torch.equal(first(cloud()), second(cloud()))


@pytest.mark.parametrize("targets", [("attn.qkv",), ("mlp.fc1", "mlp.fc2")])
def test_only_the_targets_are_adapted(targets):
    model = make("lora", targets=targets)
    adapted = {name.split(".lora_")[0] for name, p in model.backbone.blocks.named_parameters() if ".lora_" in name}
    assert adapted == {f"{i}.{target}" for i in range(6) for target in targets}


def test_a_wrong_target_is_named():
    with pytest.raises(ValueError, match=r"targets must be among attn\.proj, attn\.qkv, mlp\.fc1, mlp\.fc2"):
        make("lora", targets=("attn.query",))
    with pytest.raises(ValueError, match="targets must be among"):
        make("lora", targets=())


def test_published_names_are_those_of_the_plain_backbone():
    from pointpeft.checkpoints import to_published

    names = set(to_published(make("lora")))
    assert "blocks.blocks.0.attn.qkv.weight" in names
    assert not any("base_layer" in name for name in names)


@pytest.mark.parametrize("name", HF)
def test_merging_leaves_the_plain_blocks(name):
    model = stirred(name, noise=0.02)
    with torch.no_grad():
        before = model(cloud())
        merged = model.merge()(cloud())
    assert (merged - before).abs().max() <= 1e-4 * before.abs().max()
    plain = create_model("point_mae_tiny", "linear", 4, **SMALL)
    assert {k for k in model.state_dict() if ".blocks." in k} == {k for k in plain.state_dict() if ".blocks." in k}


@pytest.mark.parametrize("name", ["lora", "rslora", "dora", "hra", "loha", "lokr"])
@pytest.mark.parametrize("target", ["attn.qkv", "mlp.fc1", "mlp.fc2"])  # without a bias, and with one
def test_lean_layers_equal_peft_s_own_with_all_gradients(name, target, generator):
    from pointpeft.methods.reparameterized import _peft_layers

    layer = stirred(name).double().backbone.blocks[1].get_submodule(target)
    assert type(layer).__module__ == _peft_layers.__name__
    theirs = next(kind for kind in type(layer).__mro__ if kind.__module__.startswith("peft."))
    x = torch.randn(2, 5, layer.in_features, generator=generator, dtype=torch.float64, requires_grad=True)
    trained = [x, *(p for p in layer.parameters() if p.requires_grad)]
    grad = torch.randn(2, 5, layer.out_features, generator=generator, dtype=torch.float64)
    ours, expected = layer(x), theirs.forward(layer, x)
    torch.testing.assert_close(ours, expected)
    for got, want in zip(*(torch.autograd.grad(y, trained, grad) for y in (ours, expected)), strict=True):
        torch.testing.assert_close(got, want)


def test_a_product_of_reflections_is_their_sequence(generator):
    from pointpeft.methods.reparameterized._peft_layers import reflected

    x = torch.randn(3, 4, 9, generator=generator, dtype=torch.float64)
    u = torch.nn.functional.normalize(torch.randn(9, 5, generator=generator, dtype=torch.float64), dim=0)
    expected = x
    for column in reversed(u.T.unbind(0)):  # (H1 … H5)ᵀ from the right
        expected = expected - 2 * (expected @ column)[..., None] * column
    torch.testing.assert_close(reflected(x, u), expected)


@pytest.mark.parametrize("name", ["lora", "rslora", "dora", "hra", "loha", "lokr"])
def test_what_lean_layers_cannot_do_goes_to_peft(name, generator, monkeypatch):
    layer = stirred(name).backbone.blocks[1].mlp.fc1
    theirs = next(kind for kind in type(layer).__mro__ if kind.__module__.startswith("peft."))
    x = torch.randn(2, 5, 96, generator=generator)
    calls, original = [], theirs.forward

    def counted(layer, x):
        calls.append(1)
        return original(layer, x)

    monkeypatch.setattr(theirs, "forward", counted)
    expected = layer(x)
    assert not calls
    layer.merge()
    torch.testing.assert_close(layer(x), expected, rtol=1e-3, atol=1e-4)
    assert calls
