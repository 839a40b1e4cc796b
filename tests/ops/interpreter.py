"""Whether Triton's interpreter runs here: that of Triton 3.6 fails with numpy 2.4 and later."""

import os
import subprocess
import sys
from functools import cache
from importlib.metadata import version

import torch

from pointpeft.ops.core import triton_launch


def _count(out, N):
    for i in range(0, N):
        tl.store(out + i, i)  # noqa: F821  the name is given when the kernel is jitted


@cache
def fault() -> str:
    """Why kernels cannot run in the interpreter; nothing where they can."""
    out = torch.zeros(3)
    try:
        triton_launch.kernel([({}, 1, 1)], key=[])(_count).launch(lambda meta: (1,), out, 3)
    except Exception as error:  # the interpreter wraps errors of numpy in its own
        return f"the interpreter of Triton {version('triton')} fails with numpy {version('numpy')}: {error}"
    assert out.tolist() == [0, 1, 2]
    return ""


@cache
def fault_in_a_process() -> str:
    """As `fault`, for what runs the interpreter in processes of its own, beside a GPU as well."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "tests.ops.interpreter"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    print(fault())
