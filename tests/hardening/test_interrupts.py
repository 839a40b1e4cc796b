"""Ctrl-C is answered while an operation that takes many minutes keeps the main thread, and not behind it."""

import signal
import subprocess
import sys
import time

import pytest

COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
import torch
from pointpeft import ops
from pointpeft.cli import main as module

def work(command):
    x = torch.rand(1, {points}, 3)
    print("begun", flush=True)
    {operation}
    print("done", flush=True)
    return 0

module._parse = lambda arguments: (None, work)
sys.exit(module.main([]))
"""
OPERATIONS = {
    "furthest_point_sample": (4_000_000, "ops.furthest_point_sample(x, 2_000_000)"),
    "knn": (500_000, "ops.knn(x.repeat(1, 1, 40), x.repeat(1, 1, 40), 8)"),
    "torch": (64, "torch.linalg.svd(torch.rand(8000, 8000))"),
    "python": (64, "sum(0 for _ in iter(int, 1))"),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_ctrl_c_is_answered_before_the_operation_ends(name):
    points, operation = OPERATIONS[name]
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(points=points, operation=operation)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout.readline() == "begun\n", process.stderr.read()
        time.sleep(0.5)  # it is in the operation
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "done" not in said
    assert process.returncode == 130, errors
    assert errors.strip().splitlines()[-1].startswith("pointpeft: stopped")
