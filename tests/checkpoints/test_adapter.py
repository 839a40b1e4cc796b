import json

import pytest
import torch

from pointpeft import create_model
from pointpeft.backbones import create_backbone
from pointpeft.checkpoints import adapter, load_adapter, save_adapter
from pointpeft.checkpoints.adapter import CARD, CONFIG, WEIGHTS, adapter_state, read_config
from pointpeft.files import sha256
from pointpeft.weights.pretrained import save_backbone
from tests.methods.tools import every_method

SMALL = {"depth": 2, "num_groups": 16, "group_size": 8}


def checkpoint(path, seed):
    torch.manual_seed(seed)
    save_backbone(create_backbone("point_mae_tiny", **SMALL), path, "point_mae_tiny")
    return path


def trained(method="dapt", origin=None):
    """A model whose trainable parameters and buffers are no longer what they were made as."""
    torch.manual_seed(1)
    model = create_model("point_mae_tiny", method, 4, origin, **SMALL)
    with torch.no_grad():
        for tensor in (*(p for p in model.parameters() if p.requires_grad), *model.buffers()):
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor))
            else:
                tensor.add_(3)
    return model.eval()


def same(one, two):
    one, two = one.state_dict(), two.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture
def origin(tmp_path):
    return checkpoint(tmp_path / "pretrain.safetensors", 0)


@pytest.fixture
def folder(tmp_path, origin):
    save_adapter(trained(origin=origin), tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("method", every_method())
@pytest.mark.parametrize("on_checkpoint", [True, False])
def test_an_adapter_comes_back_bit_for_bit(method, on_checkpoint, origin, tmp_path):
    model = trained(method, origin if on_checkpoint else None)
    save_adapter(model, tmp_path / "adapter")
    loaded = load_adapter(tmp_path / "adapter")
    assert same(model, loaded)
    assert not loaded.training
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in loaded.named_parameters() if p.requires_grad} == trains


def test_the_logits_are_the_same(folder, origin):
    xyz = torch.rand(2, 64, 3, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.equal(load_adapter(folder)(xyz), trained(origin=origin)(xyz))


def test_it_holds_what_the_checkpoint_does_not_give_back_and_no_more(folder, origin):
    model = trained(origin=origin)
    stored = set(adapter_state(model))
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad and "cls_" not in name}
    assert frozen
    assert not frozen & stored
    assert stored >= {name for name, _ in model.named_buffers()}
    assert stored >= {name for name, p in model.named_parameters() if p.requires_grad}
    assert (folder / WEIGHTS).stat().st_size < origin.stat().st_size
    config = read_config(folder)
    assert config["base_model_sha256"] == sha256(origin)
    assert config["weights_sha256"] == sha256(folder / WEIGHTS)


def test_the_adapter_of_another_checkpoint_is_refused_by_checksum(folder, origin, tmp_path):
    other = checkpoint(tmp_path / "other.safetensors", 7)
    with pytest.raises(ValueError, match=f"other.safetensors is not the one .* sha256 {sha256(other)[:16]}.*needs"):
        load_adapter(folder, other)
    wanted = sha256(origin)
    checkpoint(origin, 7)  # replaced under the same name
    with pytest.raises(ValueError, match=f"pretrain.safetensors is not the one .*needs {wanted[:16]}"):
        load_adapter(folder)


def test_a_checkpoint_that_moved_is_given_by_hand(folder, origin, tmp_path):
    moved = origin.rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(ValueError, match=r"needs its backbone's pre-training: .*pretrain.safetensors.* neither a file"):
        load_adapter(folder)
    model = load_adapter(folder, moved)
    assert model.origin.sha256 == sha256(moved)


def test_an_adapter_that_holds_its_backbone_takes_no_checkpoint(origin, tmp_path):
    save_adapter(trained(), tmp_path / "whole")
    with pytest.raises(ValueError, match="holds its backbone itself; give no checkpoint"):
        load_adapter(tmp_path / "whole", origin)


def test_a_folder_without_its_last_file_is_no_adapter(folder, tmp_path):
    (folder / CONFIG).unlink()
    for place in (folder, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=f"no adapter in .*: {CONFIG} is missing"):
            load_adapter(place)


@pytest.mark.parametrize("kept", [None, 0, 100, -1])
def test_missing_and_truncated_weights_are_recognised(kept, folder):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).unlink()
    if kept is not None:
        (folder / WEIGHTS).write_bytes(content[:kept])
    with pytest.raises(ValueError, match=f"{WEIGHTS} is missing or not the file that {CONFIG} was written with"):
        load_adapter(folder)


def test_a_save_that_dies_between_two_files_is_recognised(folder, origin, monkeypatch, tmp_path):
    def die(model, config):
        raise KeyboardInterrupt

    monkeypatch.setattr(adapter, "model_card", die)
    with pytest.raises(KeyboardInterrupt):
        save_adapter(trained(origin=origin), tmp_path / "first")
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == [WEIGHTS]
    with pytest.raises(ValueError, match="no adapter in"):
        load_adapter(tmp_path / "first")
    model = trained(origin=origin)
    model.head.layers[0].weight.data += 1
    with pytest.raises(KeyboardInterrupt):  # over an older adapter: new weights, old configuration
        save_adapter(model, folder)
    with pytest.raises(ValueError, match=f"not the file that {CONFIG} was written with"):
        load_adapter(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", f"{CONFIG} is not readable JSON"),
        ("[]", "must be a pointpeft adapter of format 1"),
        ('{"peft_type": "LORA", "format": 1}', "must be a pointpeft adapter of format 1"),
        ('{"peft_type": "POINTPEFT", "format": 2}', "must be a pointpeft adapter of format 1"),
    ],
)
def test_other_configurations_are_refused(content, message, folder):
    (folder / CONFIG).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_adapter(folder)


def test_weights_that_do_not_fit_the_configuration_are_listed(folder):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"num_classes": 9}))
    with pytest.raises(ValueError, match=r"(?s)does not fit its configuration: .*size mismatch for head"):
        load_adapter(folder)
    (folder / CONFIG).write_text(json.dumps(config | {"method": {"name": "linear", "fields": {}}}))
    with pytest.raises(ValueError, match=r"does not fit its configuration: missing \[\], unexpected \['backbone"):
        load_adapter(folder)


def test_a_merged_model_is_refused(origin, tmp_path):
    with pytest.raises(ValueError, match="a merged model cannot be saved"):
        save_adapter(trained(origin=origin).merge(), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_the_card_and_the_configuration_carry_the_facts(origin, tmp_path):
    model = trained(origin=origin)
    save_adapter(model, tmp_path / "a", {"accuracy": 0.75, "seeds": [0, 1]})
    assert read_config(tmp_path / "a")["metadata"] == {"accuracy": 0.75, "seeds": [0, 1]}
    card = (tmp_path / "a" / CARD).read_text()
    assert "# dapt on point_mae_tiny" in card
    assert "| accuracy | 0.75 |" in card
    assert f"{model.trainable_parameters():,} of" in card
