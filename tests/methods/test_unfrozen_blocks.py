"""Parameters that a method freezes and somebody lets train: gradients are those of plain PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pointpeft import create_model
from pointpeft.checkpoints.adapter import load_adapter, save_adapter

from .tools import cloud, every_method, stirred

PARTS = {
    "last block": lambda name: name.startswith("backbone.blocks.1."),
    "fc1": lambda name: ".1." in name and "fc1" in name,
    "norms": lambda name: ".norm" in name,
    "biases": lambda name: name.endswith("bias"),
    "qkv": lambda name: "qkv" in name,
    "proj": lambda name: "proj" in name,
    "tokenizer": lambda name: "patch_embed" in name,
    "second half of the tokenizer": lambda name: "second_conv" in name,
    "everything": lambda name: True,
}


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def gradients(model):
    """Of a loss that looks at all logits, in double precision, where no rounding moves a token over an edge."""
    model.zero_grad()
    torch.manual_seed(5)
    logits = model(cloud().double())
    logits.square().sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def compared(model, monkeypatch):
    logits, got = gradients(model)
    monkeypatch.setenv("POINTPEFT_BACKEND", "reference")
    for module in model.modules():
        if type(module) in (nn.Linear, nn.LayerNorm, nn.Conv1d, nn.Conv2d, nn.BatchNorm1d):
            module.register_forward_hook(lambda module, given, y: None)  # so that every layer is called
    expected_logits, expected = gradients(model)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-7, atol=1e-8)
    assert set(got) == set(expected)
    largest = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-6, atol=1e-9 * largest, msg=name)
    return got


def free(model, choose):
    chosen = {name for name, p in model.named_parameters() if choose(name)}
    for name in chosen:
        model.get_parameter(name).requires_grad_(True)
    return chosen


@pytest.mark.parametrize("part", ["last block", "everything"])
@pytest.mark.parametrize("name", every_method())
def test_gradients_of_what_was_freed_in_every_method(name, part, monkeypatch):
    model = without_dropout(stirred(name, depth=2)).double()
    chosen = free(model, PARTS[part])
    got = compared(model, monkeypatch)
    assert {key for key in chosen if "attn.qkv" in key or "mlp.fc" in key} <= set(got)


@pytest.mark.parametrize("adapter", [True, False])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", ["dapt", "linear", "point_peft"])
def test_gradients_of_parts(name, part, adapter, monkeypatch):
    model = without_dropout(stirred(name, depth=2)).double()
    if not adapter:  # what the method trains is frozen, so that nothing but the freed asks for a gradient
        model.requires_grad_(False)
    chosen = free(model, PARTS[part])
    got = compared(model, monkeypatch)
    assert adapter or set(got) <= chosen


@pytest.mark.parametrize("name", ["dapt", "ssf", "lora"])
def test_the_last_blocks_learn_beside_the_adapter(name):
    pytest.importorskip("peft")
    model = stirred(name, depth=2).train()
    for parameter in model.backbone.blocks[-1:].parameters():
        parameter.requires_grad_(True)
    before = {key: p.clone() for key, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-2)
    F.cross_entropy(model(cloud()), torch.tensor([0, 3])).backward()
    optimizer.step()
    moved = {key for key, value in before.items() if not torch.equal(value, model.get_parameter(key))}
    assert any("fc1.weight" in key or "fc1.base_layer.weight" in key for key in moved)


def scattered(model):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def comes_back(model, folder):
    save_adapter(model, folder)
    again = load_adapter(folder)
    with torch.no_grad():
        x = torch.rand(2, 256, 3)
        assert torch.equal(again(x), model(x))
    trained, expected = ({key for key, p in m.named_parameters() if p.requires_grad} for m in (again, model))
    assert trained == expected


@pytest.mark.parametrize("name", ["dapt", "linear"])
def test_an_adapter_holds_what_was_freed(name, tmp_path):
    torch.manual_seed(0)
    model = create_model("point_mae_tiny", name, 4, checkpoint="point_mae_tiny").eval()
    for parameter in model.backbone.blocks[-2:].parameters():
        parameter.requires_grad_(True)
    comes_back(scattered(model), tmp_path)


def test_an_adapter_lacks_what_was_frozen(tmp_path):
    torch.manual_seed(0)
    model = create_model("point_mae_tiny", "bitfit", 4, checkpoint="point_mae_tiny").eval()
    for block in model.backbone.blocks[:2]:
        block.requires_grad_(False)
    comes_back(scattered(model), tmp_path)
