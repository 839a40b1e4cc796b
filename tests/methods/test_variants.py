"""What every registered method promises, for options that build other modules than the defaults."""

import pytest
import torch

from pointpeft import load_adapter, save_adapter
from pointpeft.methods import method_class
from tests.methods.test_registry import clouds, make, train

VARIANTS = [
    ("adapter_x", {"dynamic": True}),
    ("bi_adaptformer", {"bits": 2}),
    ("dyt", {"experts": 2}),
    ("fact", {"form": "tk"}),
    ("iconformer", {"form": "curve"}),
    ("peterrec", {"insertion": "parallel"}),
    ("prefix", {"hidden": 16}),
    ("unipelt", {"parts": ("adapter", "prefix")}),
    ("unipelt", {"parts": ("lora", "prefix"), "central_gate": True}),
    ("unipelt", {"bitfit": True, "soft_prompts": 2}),
    ("vpt", {"deep": False, "placement": "after_prefix", "positions": False}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_a_variant_trains_saves_and_knows_no_neighbours(name, options, tmp_path):
    model = make(name, **options).train()
    start = {key: p.clone() for key, p in model.named_parameters() if p.requires_grad}
    frozen = {key: p.clone() for key, p in model.named_parameters() if not p.requires_grad}
    train(model, 3)
    still = {key for key, value in start.items() if torch.equal(model.get_parameter(key), value)}
    assert still == {key for key in still if model.method.is_dead(key)}
    assert all(torch.equal(model.get_parameter(key), value) for key, value in frozen.items())

    save_adapter(model.eval(), tmp_path / "adapter")
    again = load_adapter(tmp_path / "adapter")
    xyz, _ = clouds()
    with torch.no_grad():
        together = model(xyz)
        assert torch.equal(again(xyz), together)
        alone = torch.cat([model(cloud[None]) for cloud in xyz])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
        if method_class(name).mergeable:
            assert (model.merge()(xyz) - together).abs().max() <= 1e-4 * together.abs().max()
