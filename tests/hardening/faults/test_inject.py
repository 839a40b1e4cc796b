"""A few faults for every run of the tests; the nightly command injects many."""

import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch

import pointpeft.runs.finetune as finetuning
from pointpeft.training.run_folder import RunFolder
from tests.clouds import write_clouds
from tests.hardening.faults.runs import EPOCHS, OPTIONS, end, lost_with_partner, run, together

ROOT = Path(__file__).resolve().parents[3]
KILLS = int(os.environ.get("POINTPEFT_FAULT_KILLS", "3"))


def test_no_fault_loses_a_run_or_passes_unseen(tmp_path):
    command = [sys.executable, "-m", "tests.hardening.faults.inject", f"--kills={KILLS}", "--others=1"]
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


def pair(data, folder, prepare=lambda rank: None):
    """The exit codes of two processes that train together."""

    def start(rank):
        torch.set_num_threads(1)  # GNU's OpenMP hangs in a fork whose parent has had a parallel region
        prepare(rank)

    children = together(["finetune", str(data), *OPTIONS, f"--output={folder}"], 2, start)
    stuck = [child.output() for child in children if not child.ends(120)]
    assert not stuck, "\n".join(stuck + [child.output() for child in children])  # they end by themselves
    return end(children)


def die(*ignored, **options):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_loses_its_partner_ends_with_an_error_or_has_trained_to_the_end(tmp_path):
    data, whole = write_clouds(tmp_path / "scans", per_class=5), tmp_path / "whole"
    assert pair(data, whole) == [0, 0]

    def in_an_epoch(rank):
        real = RunFolder.save_checkpoint

        def save(folder, state):
            if state["epoch"] == 3 and rank == 1:
                die()
            real(folder, state)

        mock.patch.object(RunFolder, "save_checkpoint", save).start()

    broken = tmp_path / "broken"
    assert pair(data, broken, in_an_epoch) == [1, -signal.SIGKILL]
    assert not (broken / "result.json").exists()
    assert lost_with_partner(whole, broken) == ["ended well without its partner after 3 epochs"]

    def behind_the_last(rank):
        if rank == 0:
            mock.patch.object(finetuning, "write_result", die).start()

    ended = tmp_path / "ended"
    assert pair(data, ended, behind_the_last) == [-signal.SIGKILL, 0]
    assert not (ended / "result.json").exists()
    assert lost_with_partner(whole, ended) == []
    assert run(["finetune", "--resume", str(ended)], partial(torch.set_num_threads, 1))[0] == 0
    assert (ended / "result.json").exists()

    # A process that goes on alone has as many epochs, of half of the clouds: another model.
    alone = tmp_path / "alone"
    shutil.copytree(whole, alone)
    state = RunFolder(alone).load_checkpoint(torch.device("cpu"))
    assert state["epoch"] == EPOCHS
    next(iter(state["model"].values())).view(-1)[0] += 1e-3
    RunFolder(alone).save_checkpoint(state)
    (difference,) = lost_with_partner(whole, alone)
    assert difference.startswith("went on without its partner: ")
