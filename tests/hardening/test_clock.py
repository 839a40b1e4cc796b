"""A clock that jumps, as one that is set by the network or in another time zone: no result depends on it."""

import csv
import itertools
import os
import time

import torch

from tests.clouds import write_clouds
from tests.hardening.faults.runs import OPTIONS, run, same


def jumping():
    """Makes the clock of the day go back by an hour with every reading, to before 1970 in the end."""
    torch.set_num_threads(1)
    hours = itertools.count()
    time.time = lambda: 5e4 - 3600.0 * next(hours)
    time.time_ns = lambda: int(time.time() * 1e9)


def test_a_run_under_a_clock_that_goes_backwards_is_the_same_and_is_resumed(tmp_path):
    data = write_clouds(tmp_path / "scans", per_class=5)
    for number, path in enumerate(sorted(data.rglob("*.npy"))):
        os.utime(path, (0, 4e9 - number))  # changed in 2096
    whole, hurt = tmp_path / "whole", tmp_path / "hurt"
    code, said, _ = run(["finetune", str(data), *OPTIONS, f"--output={whole}"], lambda: torch.set_num_threads(1))
    assert code == 0, said
    code, said, _ = run(["finetune", str(data), *OPTIONS, f"--output={hurt}"], jumping)
    assert code == 0, said
    assert same(whole, hurt) is None
    with open(hurt / "log.csv", newline="") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    assert seconds == sorted(seconds)
    assert 0 < seconds[0]
    for path in hurt.rglob("*"):
        os.utime(path, (0, 0))
    (hurt / "result.json").unlink()
    code, said, _ = run(["finetune", "--resume", str(hurt)], jumping)
    assert code == 0, said
    assert same(whole, hurt) is None


def test_predictions_go_on_under_a_clock_that_goes_backwards(tmp_path):
    data, folder = write_clouds(tmp_path / "scans", per_class=3), tmp_path / "run"
    code, said, _ = run(["finetune", str(data), *OPTIONS, f"--output={folder}"], lambda: torch.set_num_threads(1))
    assert code == 0, said
    arguments = ["predict", str(folder), str(data / "test"), "--quiet", "--device=cpu", f"--output={tmp_path / 'out'}"]
    for expected in (9, 0):
        code, said, _ = run(arguments, jumping)
        assert code == 0, said
        assert f"clouds now         {expected}\n" in said
