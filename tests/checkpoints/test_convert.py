import re

import pytest
import torch
import yaml

from pointpeft.checkpoints import load_adapter
from pointpeft.checkpoints.adapter import WEIGHTS
from pointpeft.checkpoints.convert import convert
from pointpeft.files import read_weights, sha256
from tests.goldens import reader

NAMES = [name for name in reader.NAMES if name.endswith(("small", "shallow"))]


def published(folder, name):
    """A published file and its configuration, as their training writes them; and the state."""
    meta, tensors = reader.read(name)
    state = reader.state_dict(meta)
    content = {"base_model": {f"module.{key}": tensor for key, tensor in state.items()}, "epoch": 3}
    torch.save(content, folder / "ckpt-best.pth")
    (folder / "cfg.yaml").write_text(yaml.safe_dump({"model": meta["config"], "npoints": 2048}))
    beside = None
    if "memory_bank" in tensors:
        beside = folder / "bank.pt"
        torch.save(tensors["memory_bank"], beside)
    return folder / "ckpt-best.pth", folder / "cfg.yaml", beside, state


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back_gives_the_same_bits(name, tmp_path):
    source, config, beside, state = published(tmp_path, name)
    convert(source, tmp_path / "adapter", config, beside=beside)
    convert(tmp_path / "adapter", tmp_path / "back.pth")
    back, _ = read_weights(tmp_path / "back.pth")
    model = load_adapter(tmp_path / "adapter")
    unread = {key for key in state if any(re.search(p, key) for p in model.backbone.unread_keys) and key not in back}
    read = {key: tensor for key, tensor in state.items() if key not in unread}
    assert all(torch.equal(back[key], tensor) and back[key].dtype == tensor.dtype for key, tensor in read.items())
    copies = [key for key in set(back) - set(state) if not key.endswith("num_batches_tracked") and key != "memory_bank"]
    assert all(any(torch.equal(back[key], tensor) for tensor in state.values()) for key in copies)
    convert(tmp_path / "back.pth", tmp_path / "again", config, beside=beside)
    assert sha256(tmp_path / "again" / WEIGHTS) == sha256(tmp_path / "adapter" / WEIGHTS)
    _, tensors = reader.read(name)
    model = load_adapter(tmp_path / "again")
    with torch.no_grad():
        logits = model(tensors["points"], **{key: tensors[key] for key in model.method.inputs})
    assert (logits - tensors["logits"]).abs().max() <= 1e-4 * tensors["logits"].abs().max()


def test_wrong_calls_say_what_is_needed(tmp_path):
    source, config, _, _ = published(tmp_path, "dapt_small")
    with pytest.raises(ValueError, match="config must name the YAML file"):
        convert(source, tmp_path / "a")
    with pytest.raises(ValueError, match="output must be a folder"):
        convert(source, tmp_path / "a.pth", config)
    (tmp_path / "other.yaml").write_text("optimizer: {}")
    with pytest.raises(ValueError, match=r"has no section `model:`"):
        convert(source, tmp_path / "a", tmp_path / "other.yaml")
    with pytest.raises(ValueError, match="exists already"):
        convert(source, tmp_path, config)
    convert(source, tmp_path / "a", config)
    with pytest.raises(ValueError, match=r"output must end in \.pth or \.pt for an adapter"):
        convert(tmp_path / "a", tmp_path / "b")
    with pytest.raises(ValueError, match="an adapter knows its own"):
        convert(tmp_path / "a", tmp_path / "b.pth", config)


def test_the_command_takes_a_run(tmp_path, capsys):
    from pointpeft.cli.main import main

    source, config, _, _ = published(tmp_path, "dapt_small")
    assert main(["convert", str(source), str(tmp_path / "run" / "adapter"), "--config", str(config)]) == 0
    assert "dapt on point_mae" in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "run.pth")]) == 0
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "run.pth")]) == 1
    assert "exists already" in capsys.readouterr().err
