"""Whole commands in processes of their own: several by `accelerate launch`, and a comparison that is killed."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.clouds import TINY, TINY_MODEL

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
COMMAND = (sys.executable, "-m", "pointpeft")


def options(**values):
    pairs = {**values, "checkpoint": "none", "device": "cpu", "num_points": 64, "batch_size": 8}
    return [f"--{name.replace('_', '-')}={value}" for name, value in pairs.items()] + ["--quiet"]


def sets(*pairs):
    return [text for pair in pairs for text in ("--set", pair)]


def test_accelerate_launch_trains_as_one_process(clouds_folder, tmp_path):
    """In float32: what AdamW makes of other roundings is bounded here, `test_processes` has them in float64."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
    launcher += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", f"--main_process_port={port}"]
    common = ["finetune", str(clouds_folder), *sets(*TINY_MODEL, "dropout=0"), "--no-probe", "--sync-batchnorm"]
    common += options(epochs=2, warmup_epochs=1, val_fraction=TINY["val_fraction"])
    # Every process draws the head's dropout for itself; Python runs this file before anything else.
    (tmp_path / "sitecustomize.py").write_text("from torch import nn\nnn.Dropout.forward = lambda self, x: x\n")
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    for name, start in (("one", COMMAND), ("two", [*launcher, "-m", "pointpeft"])):
        command = [*start, *common, "--output", str(tmp_path / name)]
        subprocess.run(command, env=ENVIRONMENT | {"PYTHONPATH": paths}, check=True, timeout=300)
    logs, results = [], []
    for name in ("one", "two"):
        with open(tmp_path / name / "log.csv") as file:
            logs.append([float(row["loss"]) for row in csv.DictReader(file)])
        results.append(json.loads((tmp_path / name / "result.json").read_text()))
    assert len(logs[0]) == 2
    assert logs[1] == pytest.approx(logs[0], rel=1e-3)
    assert results[1]["clouds"] == results[0]["clouds"]
    assert results[1]["test"]["clouds"] == results[0]["test"]["clouds"] == 24  # each cloud counted once
    assert results[1]["test"]["loss"] == pytest.approx(results[0]["test"]["loss"], rel=1e-2)


def _table(folder):
    """The numbers that do not depend on the clock or the memory."""
    rows = json.loads((folder / "result.json").read_text())["rows"]
    measured = ("peak_memory_mib", "clouds_per_second", "training_seconds")
    return [{name: value for name, value in row.items() if name not in measured} for row in rows]


def test_a_comparison_killed_twice_ends_with_the_same_table(clouds_folder, tmp_path):
    common = ["compare", str(clouds_folder), "--methods", "bitfit", "dapt:rank=4", "--seeds=1"]
    common += [*sets(*TINY_MODEL[:-1]), *options(epochs=2)]
    subprocess.run([*COMMAND, *common, "--output", str(tmp_path / "whole")], env=ENVIRONMENT, check=True, timeout=300)
    killed = tmp_path / "killed"
    # First when the first run has its first epoch behind it, then when the second has.
    for name in ("bitfit", "dapt_rank=4"):
        checkpoint = killed / name / "seed-0" / "checkpoint.pt"
        process = subprocess.Popen(
            [*COMMAND, *common, "--output", str(killed)], env=ENVIRONMENT, start_new_session=True
        )
        end = time.monotonic() + 300
        while not checkpoint.exists():
            assert process.poll() is None, "the comparison ended before it could be killed"
            assert time.monotonic() < end
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)  # its children, too
        process.wait()
        assert not (killed / "result.json").exists()
    subprocess.run([*COMMAND, *common, "--output", str(killed)], env=ENVIRONMENT, check=True, timeout=300)
    assert _table(killed) == _table(tmp_path / "whole")
    assert (killed / "table.md").exists()
