import os
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest

from pointpeft.locks import InUseError, Lock
from pointpeft.training.run_folder import RunFolder

HOLDER = "import sys, time; from pathlib import Path; from pointpeft.locks import Lock\n"
HOLDER += "lock = Lock(Path(sys.argv[1]), 'it', 'wait'); print('held', flush=True); time.sleep(600)"


@dataclass
class Options:
    lr: float = 0.1


def holder(path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_names_its_holder_and_ends_with_a_kill(tmp_path):
    process = holder(tmp_path / ".lock")
    try:
        with pytest.raises(InUseError, match=rf"it is in use by process {process.pid} on .*\.lock.* or wait"):
            Lock(tmp_path / ".lock", "it", "wait")
    finally:
        process.kill()
        process.wait()
    lock = Lock(tmp_path / ".lock", "it", "wait")
    lock.release()
    assert os.listdir(tmp_path) == []


def test_a_forked_child_neither_keeps_nor_ends_the_lock(tmp_path):
    lock = Lock(tmp_path / ".lock", "it", "wait")
    child = os.fork()
    if child == 0:
        time.sleep(600)
    try:
        with pytest.raises(InUseError):
            Lock(tmp_path / ".lock", "it", "wait")
        lock.release()
        Lock(tmp_path / ".lock", "it", "wait").release()
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_two_runs_never_get_one_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pathlib.Path.exists", lambda path: False)  # as seen before the other has made it
    first, second = RunFolder.new(None, "run"), RunFolder.new(None, "run")
    assert first.path != second.path
    monkeypatch.undo()
    given = RunFolder.new(tmp_path / "given", "run")
    with pytest.raises(InUseError, match=r"given is in use by process"):
        RunFolder.new(tmp_path / "given", "run")
    given.close()
    again = RunFolder.new(tmp_path / "given", "run")
    again.write_config(Options(), "finetune")
    again.close()
    with pytest.raises(ValueError, match="already holds a run"):
        RunFolder.new(tmp_path / "given", "run")
    RunFolder(tmp_path / "given").lock().close()  # the refusal has left no lock
