"""What is written into weights counts in the next pass, however it was written and in whatever mode the model is."""

import copy
from contextlib import nullcontext

import pytest
import torch

from .tools import cloud, every_method, stirred

WAYS = {
    "data": lambda p, value: p.data.copy_(value),
    "another data": lambda p, value: setattr(p, "data", value.clone()),
    "copy": lambda p, value: p.copy_(value),
    "set": lambda p, value: p.set_(value.clone()),
    "average": lambda p, value: torch._foreach_lerp_([p.data], [value], 1.0),
    "array": lambda p, value: p.detach().numpy().__setitem__(..., value.numpy()),
}


def moved(parameter, share=1.0):
    """Other values of a parameter, all or a share of them."""
    generator = torch.Generator().manual_seed(7)
    mask = torch.rand(parameter.shape, generator=generator) < share
    noise = 0.2 * torch.randn(parameter.shape, generator=generator)
    return parameter.detach() + torch.where(mask, noise, torch.zeros_like(noise))


def passes(model, dtype):
    with torch.no_grad(), nullcontext() if dtype is None else torch.autocast("cpu", dtype):
        return model(cloud())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["dapt", "ssf", "linear", "point_peft"])
def test_every_way_of_writing_counts(name, way, dtype):
    model = stirred(name, depth=2)
    before = passes(model, dtype)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            WAYS[way](parameter, moved(parameter))
    after = passes(model, dtype)
    assert not torch.equal(after, before)
    assert torch.equal(after, passes(copy.deepcopy(model), dtype))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("name", every_method())
def test_a_change_of_few_values_counts_in_every_method(name, dtype):
    model = stirred(name, depth=2)
    passes(model, dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data.copy_(moved(parameter, 0.02))
    assert torch.equal(passes(model, dtype), passes(copy.deepcopy(model), dtype))


def test_loading_a_state_counts():
    model, other = stirred("dapt", depth=2), stirred("dapt", seed=3, depth=2)
    passes(model, None)
    model.load_state_dict(other.state_dict())
    assert torch.equal(passes(model, None), passes(other, None))


def test_one_value_of_a_projection_counts_in_inference_mode():
    model = stirred("dapt", depth=2)
    with torch.inference_mode():
        before = model(cloud())
        model.backbone.blocks[1].attn.proj.weight.data.view(-1)[4321] += 100
        assert not torch.equal(model(cloud()), before)
