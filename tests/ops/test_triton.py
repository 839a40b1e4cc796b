"""The Triton kernels compile for every architecture, and cost nothing where they are not launched."""

import os
import subprocess
import sys

import pytest

from tests.ops.compile_kernels import ARCHS, CASES


@pytest.mark.triton
@pytest.mark.parametrize("name", CASES)
def test_kernels_compile_for_every_architecture(name):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.ops.compile_kernels", name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for arch in ARCHS:
        assert f"sm_{arch}: " in done.stdout


def test_importing_pointpeft_imports_no_triton():
    code = "import sys, pointpeft.ops; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
