"""Commands leave points out that are not finite when asked, and name the option only where it helps."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pointpeft.data import DataError
from pointpeft.runs.comparison.plan import run_config
from pointpeft.runs.config import CompareConfig, FewShotConfig, MemoryBankConfig
from pointpeft.runs.memory_bank import memory_bank
from pointpeft.tasks.base import create_task
from tests.data.conftest import write_folder

MAP = np.array([4123456.5, 2630000.25, 801234.5])


@pytest.mark.parametrize("command", [CompareConfig, FewShotConfig])
def test_every_run_of_a_comparison_gets_the_option(command):
    for asked in (False, True):
        config = command(methods=("linear",), drop_non_finite=asked)
        assert run_config(config, "linear", 0, Path("unused")).drop_non_finite is asked


def test_a_memory_bank_says_what_it_leaves_out(tmp_path):
    root = write_folder(tmp_path / "set", {"train/a": 2, "train/b": 2, "test/a": 1}, points=64)
    cloud = np.load(root / "train/a/00.npy")
    cloud[5] = np.nan
    np.save(root / "train/a/00.npy", cloud)
    config = {"data": str(root), "output": tmp_path / "bank.safetensors", "num_points": 64, "device": "cpu"}
    with pytest.raises(DataError, match=r"1 of 64 points are not finite.*--drop-non-finite"):
        memory_bank(MemoryBankConfig(**config))
    facts = memory_bank(MemoryBankConfig(**config, drop_non_finite=True))
    assert facts["clouds"] == 4
    assert facts["note"] == "1 points that are not finite were left out of 1 clouds"


def adapted(normalized):
    return SimpleNamespace(normalized=normalized, fewest_points=1)


@pytest.mark.parametrize("task", ["classification", "part_segmentation"])
def test_a_model_without_normalisation_sees_the_detail_of_map_coordinates(task, tmp_path):
    cloud = np.random.default_rng(0).uniform(-0.5, 0.5, (60, 3))
    np.save(tmp_path / "a.npy", cloud + MAP)
    found = create_task(task).read(adapted(False), tmp_path / "a.npy")
    torch.testing.assert_close(found, torch.from_numpy(cloud - cloud.mean(0)).float(), atol=1e-6, rtol=0)
    np.save(tmp_path / "near.npy", cloud)
    assert torch.equal(create_task(task).read(adapted(False), tmp_path / "near.npy"), torch.from_numpy(cloud).float())


@pytest.mark.parametrize(
    ("task", "named"), [("classification", True), ("part_segmentation", False), ("semantic_segmentation", False)]
)
def test_a_refusal_names_the_option_where_the_task_has_it(task, named, tmp_path):
    cloud = np.random.default_rng(0).normal(size=(40, 3))
    cloud[3] = np.nan
    np.save(tmp_path / "a.npy", cloud)
    with pytest.raises(DataError, match="1 of 40 points are not finite, the first is point 3") as error:
        create_task(task).read(adapted(True), tmp_path / "a.npy")
    assert ("--drop-non-finite" in str(error.value)) is named
