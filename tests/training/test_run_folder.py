import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pointpeft.recipes.options_file import read_options
from pointpeft.runs.config import FinetuneConfig, PretrainConfig
from pointpeft.training.run_folder import RunFolder


def test_a_configuration_comes_back_as_it_was(tmp_path):
    config = replace(FinetuneConfig(), set=("rank=4", "dropout=0.1"), output=Path("a/b"), lr=1e-4)
    folder = RunFolder(tmp_path / "run")
    folder.write_config(config, "finetune")
    assert folder.read_config(FinetuneConfig, "finetune") == config


def test_a_run_of_another_command_is_refused(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_config(FinetuneConfig(), "finetune")
    with pytest.raises(ValueError, match="holds a run of `finetune`; a run of `pretrain` is needed"):
        folder.read_config(PretrainConfig, "pretrain")


def test_no_run_and_broken_configurations_are_named(tmp_path):
    folder = RunFolder(tmp_path)
    with pytest.raises(ValueError, match="holds no run"):
        folder.read_config(FinetuneConfig, "finetune")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        folder.read_config(FinetuneConfig, "finetune")
    (tmp_path / "config.json").write_text('{"command": "finetune", "quirks": "both"}')
    with pytest.raises(ValueError, match="unknown entries quirks"):
        folder.read_config(FinetuneConfig, "finetune")
    (tmp_path / "config.json").write_text('{"command": "finetune", "learning": 1}')
    with pytest.raises(ValueError, match="unknown entries learning"):
        folder.read_config(FinetuneConfig, "finetune")


def test_new_folders_never_overwrite_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = RunFolder.new(None, "finetune-x")
    first.write_config(FinetuneConfig(), "finetune")
    assert RunFolder.new(None, "finetune-x").path == Path("runs/finetune-x-2")
    first.close()
    with pytest.raises(ValueError, match="already holds a run"):
        RunFolder.new(first.path, "")


def test_checkpoint_and_log(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.load_checkpoint(torch.device("cpu")) is None
    folder.save_checkpoint({"epoch": 3, "model": {"w": torch.ones(2)}, "history": [{"epoch": 1}]})
    assert folder.load_checkpoint(torch.device("cpu"))["model"]["w"].tolist() == [1, 1]
    folder.log([{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0, "val accuracy": 0.5}])
    assert (tmp_path / "log.csv").read_text() == "epoch,loss,val accuracy\n1,2.0,\n2,1.0,0.5\n"
    folder.close()


def test_other_processes_write_nothing(tmp_path):
    folder = RunFolder(tmp_path / "run", main=False)
    folder.write_config(FinetuneConfig(), "finetune")
    folder.save_checkpoint({})
    folder.log([{"epoch": 1}])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("earlier", "double"), [("none", False), ("published", True)])
def test_a_run_of_an_earlier_version_goes_on(tmp_path, earlier, double):
    (tmp_path / "config.json").write_text(json.dumps({"command": "finetune", "data": "scans", "quirks": earlier}))
    config = RunFolder(tmp_path).read_config(FinetuneConfig, "finetune")
    assert config == FinetuneConfig("scans", double_step=double, classifier="mlp")
    assert read_options(tmp_path / "config.json") == config
