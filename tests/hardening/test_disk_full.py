"""A disk that is full at any of a run's writes: an error that names the file, and nothing lost but the last epoch."""

import errno
import json
import os
import resource
import signal

import pytest
import torch

from pointpeft import files
from tests.clouds import write_clouds
from tests.hardening.faults.runs import EPOCHS, OPTIONS, run, same, sound


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    root = tmp_path_factory.mktemp("disk")
    data = write_clouds(root / "scans", per_class=5)
    code, said, _ = run(["finetune", str(data), *OPTIONS, f"--output={root / 'whole'}"], single_thread)
    assert code == 0, said
    return data, root / "whole"


def single_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("write", [1, 2, 3, 4, 5, 2 * EPOCHS, 2 * EPOCHS + 6])
def test_a_full_disk_ends_the_run_with_the_files_name_and_it_goes_on_when_there_is_room(write, undisturbed, tmp_path):
    data, whole = undisturbed
    folder = tmp_path / "run"

    def full():
        single_thread()
        count, real = 0, files._new_file_beside

        def new_file(path):
            nonlocal count
            count += 1
            if count >= write:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(path)

        files._new_file_beside = new_file

    code, said, _ = run(["finetune", str(data), *OPTIONS, f"--output={folder}"], full)
    assert code == 1, said
    message = said.strip().splitlines()[-1]
    assert message.startswith("pointpeft: error: ")
    assert "No space left on device" in message
    assert str(folder) in message
    assert sound(folder) == []
    assert not list(folder.rglob(".*.tmp"))
    assert not (folder / "result.json").exists()
    if (folder / "config.json").exists():
        code, said, _ = run(["finetune", "--resume", str(folder)], single_thread)
        assert code == 0, said
        assert same(whole, folder) is None


@pytest.mark.parametrize("room", [0, 200, 700])
def test_predictions_go_on_behind_the_line_at_which_the_disk_was_full(room, undisturbed, tmp_path):
    data, whole = undisturbed
    arguments = ["predict", str(whole), str(data / "test"), "--quiet", "--device=cpu", "--batch-size=1"]
    output = tmp_path / "out"

    def full():
        single_thread()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    code, said, _ = run([*arguments, f"--output={output}"], full)
    assert code == 1, said
    assert str(output) in said.strip().splitlines()[-1]
    code, said, _ = run([*arguments, f"--output={output}"], single_thread)
    assert code == 0, said
    code, said, _ = run([*arguments, f"--output={tmp_path / 'whole'}"], single_thread)
    assert code == 0, said
    first, second = ((folder / "predictions.jsonl").read_text() for folder in (output, tmp_path / "whole"))
    assert first == second
    assert len({json.loads(line)["cloud"] for line in first.splitlines()}) == 15
