import itertools
import json

import pytest
import torch
from safetensors.torch import load_file

from pointpeft.runs.config import FinetuneConfig, PretrainConfig
from pointpeft.runs.finetune import finetune
from pointpeft.runs.pretrain import pretrain
from tests.clouds import TINY, TINY_MODEL

BACKBONE = tuple(pair for pair in TINY_MODEL if not pair.startswith("rank"))


def config(folder, output, **changes):
    options = {"epochs": 3, "batch_size": 8, "num_points": 64, "set": BACKBONE, "device": "cpu", "quiet": True}
    return PretrainConfig(data=str(folder), output=output, **{**options, **changes})


def test_the_weights_go_into_an_adaptation(clouds_folder, tmp_path):
    result = pretrain(config(clouds_folder, tmp_path / "pre", epochs=8))
    assert result.last_loss < result.first_loss
    assert result.clouds_seen == 8 * 24
    assert json.loads((tmp_path / "pre" / "result.json").read_text())["epochs"] == 8
    assert "point_mae_tiny" in (tmp_path / "pre" / "README.md").read_text()
    run = finetune(
        FinetuneConfig(
            data=str(clouds_folder),
            checkpoint=str(result.weights),
            set=TINY_MODEL,
            device="cpu",
            quiet=True,
            probe=False,
            output=tmp_path / "run",
            **TINY,
        )
    )
    assert run.test["clouds"] == 24


def test_a_stopped_pretraining_resumes_to_the_same_weights(clouds_folder, tmp_path, monkeypatch):
    from pointpeft.training.run_folder import RunFolder

    whole = pretrain(config(clouds_folder, tmp_path / "whole"))
    log = RunFolder.log

    def stop(self, history):
        log(self, history)
        if len(history) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", stop)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config(clouds_folder, tmp_path / "part"))
    resumed = pretrain(PretrainConfig(data="", resume=tmp_path / "part"))
    expected, got = load_file(whole.weights), load_file(resumed.weights)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_a_time_limit_is_recorded(clouds_folder, tmp_path, monkeypatch):
    from pointpeft.training import loop

    # A clock that the machine's load cannot bend: every look at it is 0.05 s later.
    ticks = (0.05 * i for i in itertools.count())
    monkeypatch.setattr(loop.time, "perf_counter", lambda: next(ticks))
    facts = pretrain(config(clouds_folder, tmp_path / "pre", epochs=10**6, time_limit_minutes=0.1))
    assert facts.time_limit_minutes == 0.1
    assert facts.epochs < facts.planned_epochs
    assert facts.last_learning_rate < 2e-6
    assert "time limit" in facts.schedule


def test_max_clouds(clouds_folder, tmp_path):
    assert pretrain(config(clouds_folder, tmp_path / "pre", epochs=1, max_clouds=5)).clouds == 5
    with pytest.raises(ValueError, match="max_clouds must be at least 1"):
        pretrain(config(clouds_folder, tmp_path / "other", max_clouds=0))
