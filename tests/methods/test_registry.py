"""What every registered method promises, on a small backbone."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from pointpeft import create_model, load_adapter, save_adapter
from tests.methods.tools import every_method

SMALL = {"num_groups": 16, "group_size": 8, "drop_path": 0.0}


def make(name, seed=0, **options):
    torch.manual_seed(seed)
    return create_model("point_mae_tiny", name, 4, **SMALL, **options)


def clouds(batch=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 128, 3, generator=generator), torch.arange(batch) % 4


def train(model, steps, rate=1e-3):
    xyz, labels = clouds()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], rate)
    torch.manual_seed(0)  # dropout
    losses = []
    for _ in range(steps):
        logits = model(xyz)
        loss = cross_entropy(logits, labels)
        losses.append(loss.item())
        loss = loss + sum(model.method.losses(model, xyz, labels, logits).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


@pytest.mark.parametrize("name", every_method())
def test_logits_of_a_cloud_do_not_depend_on_its_neighbours(name):
    model = make(name)
    train(model, 2)  # away from zero-initialised branches
    model.eval()
    xyz, _ = clouds(5)
    with torch.no_grad():
        together = model(xyz)
        alone = torch.cat([model(cloud[None]) for cloud in xyz])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", every_method())
def test_training_lowers_the_loss_and_leaves_the_frozen_alone(name):
    model = make(name).train()
    frozen = {key: p.clone() for key, p in model.named_parameters() if not p.requires_grad}
    losses = train(model, 12)
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(model.get_parameter(key), value) for key, value in frozen.items())


@pytest.mark.parametrize("name", every_method())
def test_gradients_reach_what_trains_within_two_steps(name):
    model = make(name, **({"gate_bias": 1.0} if name == "dapt" else {})).train()
    start = {key: p.clone() for key, p in model.named_parameters() if p.requires_grad}
    train(model, 3)
    still = {key for key, value in start.items() if torch.equal(model.get_parameter(key), value)}
    assert still == {key for key in still if model.method.is_dead(key)}


@pytest.mark.parametrize("name", every_method())
def test_an_adapter_comes_back_from_disk(name, tmp_path):
    model = make(name)
    train(model, 2)
    save_adapter(model.eval(), tmp_path / "adapter", {"note": "a test"})
    again = load_adapter(tmp_path / "adapter")
    xyz, _ = clouds()
    with torch.no_grad():
        assert torch.equal(model(xyz), again(xyz))
    assert again.trainable_parameters() == model.trainable_parameters()
    assert again.config == model.config


@pytest.mark.parametrize("name", every_method(mergeable=True))
def test_a_merged_model_gives_the_same_logits(name):
    model = make(name)
    train(model, 3, rate=1e-2)
    model.eval()
    xyz, _ = clouds()
    with torch.no_grad():
        before = model(xyz)
        after = model.merge()(xyz)
    assert (after - before).abs().max() <= 1e-4 * before.abs().max()


@pytest.mark.parametrize("name", every_method(mergeable=False))
def test_nothing_to_merge_is_an_error(name):
    with pytest.raises(ValueError, match="nothing that can be folded"):
        make(name).merge()


@pytest.mark.parametrize("name", every_method())
def test_configurations_survive_json(name):
    import json

    from pointpeft.create import create_from_config

    model = make(name)
    config = json.loads(json.dumps(model.config))
    assert create_from_config(config, device="meta").method == model.method
