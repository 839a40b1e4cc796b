"""Processes forked from one that has used several threads: operations and training in them neither hang nor differ."""

import subprocess
import sys

import pytest

CODE = """
import os, sys, torch
from pointpeft import ops
torch.set_num_threads(4)
x = torch.rand(4, 20_000, 3, generator=torch.Generator().manual_seed(0))

def answer():
    idx = ops.furthest_point_sample(x, 256)
    distance, nearest = ops.knn(x[:, :500].contiguous(), x, 8)
    return idx, distance, nearest

expected = answer()  # in parallel
child = os.fork()
if child == 0:
    torch.set_num_threads({threads})
    same = all(torch.equal(a, b) for a, b in zip(answer(), expected))
    os._exit(0 if same else 3)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
again = all(torch.equal(a, b) for a, b in zip(answer(), expected))
sys.exit(code if code else 0 if again else 4)
"""


@pytest.mark.parametrize("threads", [1])
def test_a_fork_behind_a_parallel_operation_computes_the_same(threads):
    code = CODE.replace("{threads}", str(threads))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
