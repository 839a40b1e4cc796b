import os
import subprocess
import sys

import pytest
import torch

from pointpeft.training.determinism import determinism
from tests.clouds import TINY, TINY_MODEL


@pytest.mark.parametrize("command", ["finetune", "pretrain"])
def test_two_processes_train_the_same_weights(command, clouds_folder, tmp_path):
    options = [f"--set={pair}" for pair in TINY_MODEL if command == "finetune" or not pair.startswith("rank")]
    if command == "finetune":
        options += [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
        options += ["--checkpoint=none", "--no-probe"]
    else:
        options += ["--epochs=2", "--num-points=64", "--batch-size=8"]
    options += ["--deterministic", "--seed=7", "--device=cpu", "--quiet"]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "pointpeft", command, str(clouds_folder), *options, f"--output={tmp_path / name}"],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "2", "PYTHONHASHSEED": seed},
        )
        for name, seed in (("one", "1"), ("two", "2"))
    ]
    for process in started:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors.decode()
    weights = [sorted((tmp_path / name).rglob("*.safetensors")) for name in ("one", "two")]
    assert weights[0]
    for first, second in zip(*weights, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name


def test_what_cannot_be_deterministic_is_refused_and_the_setting_put_back():
    def scatter():
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))  # which of the two stays, nobody says

    with determinism(False):
        scatter()
    with pytest.raises(ValueError, match=r"deterministic cannot be kept here: put_ does not have .*; run without it"):
        with determinism(True):
            scatter()
    assert not torch.are_deterministic_algorithms_enabled()


def test_other_errors_pass_as_they_are():
    with pytest.raises(RuntimeError, match=r"^other$"), determinism(True):
        raise RuntimeError("other")
