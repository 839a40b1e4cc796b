"""Models wrapped by Hugging Face `peft` from outside, beside the methods that use it inside."""

import copy

import pytest
import torch
import torch.nn.functional as F

from pointpeft import create_model

pytest.importorskip("peft")
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model

METHODS = ("linear", "dapt", "ssf", "adaptformer")
TARGETS = ["qkv", "proj", "fc1", "fc2"]
TASKS = {
    "classification": {},
    "part_segmentation": {"num_categories": 3},
    "semantic_segmentation": {},
}


def make(method="linear", backbone="point_mae_tiny", **options):
    torch.manual_seed(0)
    sizes = {"depth": 3, "num_groups": 12, "group_size": 8, "width": 48, "num_heads": 2, "drop_path": 0.0}
    if backbone == "point_gpt_tiny":
        del sizes["drop_path"]
    return create_model(backbone, method, 4, **sizes, **options).eval()


def cloud():
    return torch.randn(2, 64, 3, generator=torch.Generator().manual_seed(1))


def config(**options):
    return LoraConfig(**{"r": 3, "target_modules": TARGETS, **options})


def stir(model, adapter=None):
    """Moves the adapters, or the one of that name, away from zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name and (adapter is None or f".{adapter}." in name):
                parameter.normal_(0, 0.3)
    return model.eval()


def inputs(model):
    return {"category": torch.tensor([0, 2])} if model.num_categories else {}


@torch.no_grad()
def logits(model, **given):
    return model(cloud(), **given)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", TARGETS)
def test_a_lora_on_one_map_has_the_effect_of_its_merged_weight(method, target):
    model = make(method)
    before = logits(model)
    stir(inject_adapter_in_model(config(target_modules=[target]), model))
    beside = logits(model)
    assert (beside - before).abs().max() > 1e-3
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.merge()
    torch.testing.assert_close(beside, logits(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backbone", ["point_mae_tiny", "point_gpt_tiny", "point_bert_tiny"])
@pytest.mark.parametrize("task", TASKS)
def test_the_head_trains_beside_a_lora(task, backbone):
    model = make(backbone=backbone, task=task, **TASKS[task])
    given = inputs(model)
    before = logits(model, **given)
    wrapped = get_peft_model(model, config(modules_to_save=["head"]))
    torch.testing.assert_close(logits(wrapped.eval(), **given), before)
    trained = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
    assert any("modules_to_save" in name for name in trained)
    assert any("lora_A" in name for name in trained)
    optimizer = torch.optim.SGD(trained.values(), 0.1)
    wrapped.train()
    for _ in range(2):  # B is zero before the first step, and with it the gradient of A
        optimizer.zero_grad()
        y = wrapped(cloud(), **given)
        F.cross_entropy(y.flatten(0, -2), torch.arange(y[..., 0].numel()) % 4).backward()
        optimizer.step()
    lacking = [name for name, p in trained.items() if p.grad is None]
    assert not lacking
    assert (logits(wrapped.eval(), **given) - before).abs().max() > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_saved_and_loaded_it_gives_the_same_logits(method, tmp_path):
    plain = make(method)
    wrapped = stir(get_peft_model(copy.deepcopy(plain), config(modules_to_save=["head"])))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "modules_to_save" in name:
                parameter.mul_(1.1)
    wrapped.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(plain, tmp_path).eval()
    torch.testing.assert_close(logits(again), logits(wrapped), rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("saved", [None, ["head"]])
def test_merge_and_unload_gives_back_a_model_of_the_same_logits(method, saved):
    wrapped = stir(get_peft_model(make(method), config(modules_to_save=saved)))
    expected = logits(wrapped)
    merged = wrapped.merge_and_unload()
    assert type(merged).__name__ == "PointModel"
    assert not any("lora" in name for name in merged.state_dict())
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_adapters_by_name(method):
    wrapped = get_peft_model(make(method), config(), adapter_name="first")
    wrapped.add_adapter("second", config(r=2, target_modules=["fc1", "qkv"]))
    stir(wrapped)
    each = {}
    for name in ("first", "second"):
        wrapped.set_adapter(name)
        each[name] = logits(wrapped)
    with wrapped.disable_adapter():
        none = logits(wrapped)
    assert (each["first"] - each["second"]).abs().max() > 1e-3
    assert (each["first"] - none).abs().max() > 1e-3
    wrapped.set_adapter("first")
    torch.testing.assert_close(logits(wrapped), each["first"], rtol=0, atol=0)
    wrapped.delete_adapter("second")
    torch.testing.assert_close(logits(wrapped), each["first"], rtol=0, atol=0)


def test_the_configuration_is_a_mapping():
    model = make()
    assert model.config["num_classes"] == 4
    assert model.config.get("model_type", "none") == "none"
