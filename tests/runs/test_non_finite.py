"""Commands leave points out that are not finite when asked, and name the option only where it helps."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

from pointpeft.data import DataError
from pointpeft.runs.comparison.plan import run_config
from pointpeft.runs.config import CompareConfig, EvaluateConfig, FewShotConfig, FinetuneConfig, MemoryBankConfig
from pointpeft.runs.evaluate import evaluate
from pointpeft.runs.finetune import finetune
from pointpeft.runs.memory_bank import memory_bank
from pointpeft.tasks.base import create_task
from tests.clouds import TINY, TINY_MODEL, write_parts
from tests.data.conftest import write_folder
from tests.data.sets.test_s3dis import write_rooms

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


def write_parts_with_nan(root):
    path = write_parts(root / "parts.h5")
    with h5py.File(path, "r+") as file:
        file["xyz"][:, 5] = np.nan
        file["xyz"][4, 6:8] = np.inf
    return path


def write_rooms_with_nan(root):
    rooms = write_rooms(root / "rooms")
    for path in sorted(rooms.rglob("*.npy")):
        table = np.load(path)
        table[7, :3] = np.nan
        np.save(path, table)
    return rooms


@pytest.mark.parametrize(
    ("task", "write", "options"),
    [
        ("part_segmentation", write_parts_with_nan, {"clouds_in": "memory"}),
        ("part_segmentation", write_parts_with_nan, {"clouds_in": "disk"}),
        (
            "semantic_segmentation",
            write_rooms_with_nan,
            {"num_points": 128, "val_fraction": 0.4, "columns_per_epoch": 16},
        ),
    ],
)
def test_points_with_labels_are_left_out_with_them(task, write, options, tmp_path):
    config = FinetuneConfig(
        data=str(write(tmp_path)),
        task=task,
        set=TINY_MODEL,
        checkpoint="none",
        device="cpu",
        quiet=True,
        probe=False,
        output=tmp_path / "run",
        **(TINY | {"epochs": 1} | options),
    )
    with pytest.raises(DataError, match=r"not finite.*--drop-non-finite \(drop_non_finite=True\) leaves them out"):
        finetune(replace(config, output=tmp_path / "refused"))
    run = finetune(replace(config, drop_non_finite=True))
    tested = evaluate(EvaluateConfig(run=run.folder, device="cpu", quiet=True))
    for notes in (run.notes, tested.notes):
        assert any("that are not finite were left out of" in note for note in notes)


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
