"""A few faults for every run of the tests; the nightly command injects many."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pointpeft.training.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("POINTPEFT_FAULT_KILLS", "3"))


def test_no_fault_loses_a_run_or_passes_unseen(tmp_path):
    command = [sys.executable, "-m", "tests.faults.inject", f"--kills={KILLS}", "--others=1"]
    done = subprocess.run(
        [*command, f"--output={tmp_path / 'report.json'}"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["failures"] == []
    assert report["outcomes"]["resumed"] >= KILLS
    assert report["outcomes"]["read-only folder"] == 1


STATE = {"epoch": 3, "weights": torch.arange(1000.0), "history": [{"loss": 0.5}]}


@pytest.mark.parametrize("at", [0, 7, 1500, -200, -72, -66, -1])
def test_a_flipped_bit_in_a_checkpoint_is_named(at, tmp_path):
    # Without the checksum a flipped bit of a weight is another weight, and the run goes on with it.
    folder = RunFolder(tmp_path)
    folder.save_checkpoint(STATE)
    path = tmp_path / "checkpoint.pt"
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged: its content and its checksum differ"):
        folder.load_checkpoint(torch.device("cpu"))


@pytest.mark.parametrize("kept", [0, 10, 70, 71, 1000, -1])
def test_a_cut_off_checkpoint_is_named(kept, tmp_path):
    folder = RunFolder(tmp_path)
    folder.save_checkpoint(STATE)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged"):
        folder.load_checkpoint(torch.device("cpu"))


def test_a_sound_checkpoint_comes_back_and_torch_reads_it_too(tmp_path):
    folder = RunFolder(tmp_path)
    folder.save_checkpoint(STATE)
    for state in (
        folder.load_checkpoint(torch.device("cpu")),
        torch.load(tmp_path / "checkpoint.pt", weights_only=True),
    ):
        assert torch.equal(state.pop("weights"), STATE["weights"])
        assert state == {"epoch": 3, "history": [{"loss": 0.5}]}


def test_what_a_killed_process_left_half_written_is_cleared(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / "adapter").mkdir()
    for place in (tmp_path, tmp_path / "adapter"):
        (place / ".weights.4711.tmp").write_bytes(b"half")
    assert folder.load_checkpoint(torch.device("cpu")) is None
    assert list(tmp_path.rglob("*")) == [tmp_path / "adapter"]
