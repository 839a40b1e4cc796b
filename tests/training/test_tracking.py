import csv
import json
import os
import sqlite3
import subprocess
import sys
import types

import pytest

from pointpeft.runs.config import FinetuneConfig
from pointpeft.runs.finetune import finetune
from pointpeft.training.run_folder import RunFolder
from pointpeft.training.tracking import Board
from tests.clouds import TINY, TINY_MODEL


def run(data, output, **changes):
    options = {**TINY, "set": TINY_MODEL, "checkpoint": "none", "device": "cpu", "quiet": True, "probe": False}
    return finetune(FinetuneConfig(data=str(data), output=output, **(options | changes)))


def losses(folder):
    with open(folder / "log.csv") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_tensorboard_holds_the_log(clouds_folder, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install 'pointpeft[log]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(clouds_folder, tmp_path / "r")
    board = EventAccumulator(str(tmp_path / "r" / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("loss")] == [1, 2, 3]
    assert [event.value for event in board.Scalars("loss")] == pytest.approx(losses(tmp_path / "r"))
    assert "val accuracy" in board.Tags()["scalars"]


def test_a_missing_tensorboard_is_reported_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setattr(Board, "_said", False)
    for name in ("a", "b"):
        folder = RunFolder(tmp_path / name)
        folder.log([{"epoch": 1, "loss": 1.0}])
        folder.close()
        assert losses(folder.path) == [1.0]
        assert not (folder.path / "tensorboard").exists()
    assert capsys.readouterr().err.count("TensorBoard is not installed (pip install 'pointpeft[log]')") == 1


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_tracker_is_named_before_any_work(clouds_folder, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"track {name} needs the package {name}: pip install 'pointpeft\[track\]'"):
        run(clouds_folder, tmp_path / "r", track=name)
    assert not (tmp_path / "r").exists()


class Recorder(types.ModuleType):
    """A tracker that records its calls."""

    def __init__(self):
        super().__init__("wandb")
        self.calls = []

    def init(self, **options):
        self.calls.append(options)
        return self

    def log(self, row, step):
        self.calls.append((step, row))

    def finish(self):
        self.calls.append("finish")


def test_every_seed_is_tracked_as_a_run_that_can_go_on(clouds_folder, tmp_path, monkeypatch):
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", recorder)
    run(clouds_folder, tmp_path / "r", track="wandb", repeats=2)
    starts = [call for call in recorder.calls if isinstance(call, dict)]
    assert [start["name"] for start in starts] == ["r/seed-0", "r/seed-1"]
    assert {start["resume"] for start in starts} == {"allow"}
    assert starts[0]["id"] != starts[1]["id"]
    assert starts[1]["config"]["seed"] == 1
    for seed in (0, 1):
        folder = tmp_path / "r" / f"seed-{seed}"
        rows = recorder.calls[5 * seed + 1 : 5 * seed + 4]
        assert [step for step, _ in rows] == [1, 2, 3]
        assert [row["loss"] for _, row in rows] == losses(folder)
    assert recorder.calls[4] == recorder.calls[9] == "finish"


def command(data, output, tracker):
    options = [f"--{name.replace('_', '-')}={value}" for name, value in {**TINY, "epochs": 2, "device": "cpu"}.items()]
    sets = [text for pair in TINY_MODEL for text in ("--set", pair)]
    more = ["--checkpoint", "none", "--no-probe", "--quiet", "--track", tracker]
    return [sys.executable, "-m", "pointpeft", "finetune", str(data), "--output", str(output), *options, *sets, *more]


def test_wandb_works_offline(clouds_folder, tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed: pip install 'pointpeft[track]'")
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "HOME": str(tmp_path)}
    subprocess.run(command(clouds_folder, tmp_path / "r", "wandb"), env=environment, check=True, timeout=300)
    (record,) = (tmp_path / "r" / "wandb").glob("offline-run-*/*.wandb")
    content = record.read_bytes()
    assert b"val accuracy" in content
    assert all(str(loss).encode() in content for loss in losses(tmp_path / "r"))


def test_trackio_keeps_the_log_here(clouds_folder, tmp_path):
    pytest.importorskip("trackio", reason="trackio is not installed: pip install 'pointpeft[track]'")
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio"), "HOME": str(tmp_path)}
    subprocess.run(command(clouds_folder, tmp_path / "r", "trackio"), env=environment, check=True, timeout=300)
    (base,) = (tmp_path / "trackio").glob("pointpeft*.db")
    with sqlite3.connect(base) as connection:
        rows = connection.execute("select step, metrics from metrics order by step").fetchall()
    assert [step for step, _ in rows] == [1, 2]
    assert [json.loads(row)["loss"] for _, row in rows] == losses(tmp_path / "r")
