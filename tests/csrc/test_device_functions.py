"""The warp functions of the CUDA kernels, compiled for the host and run on 32 emulated lanes: no GPU is needed."""

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parent.parent / "csrc"


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
@pytest.mark.parametrize("arch", [700, 800], ids=["shuffles", "reductions"])
def test_device_functions_on_the_host(tmp_path, arch):
    program = tmp_path / "device_functions"
    flags = ["-std=c++20", "-O1", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas", "-Werror", f"-I{CSRC}"]
    source = HERE / "device_functions.cpp"
    subprocess.run(["g++", *flags, f"-D__CUDA_ARCH__={arch}", source, "-o", program], check=True)
    said = subprocess.run([program], capture_output=True, text=True)
    assert said.returncode == 0, said.stdout + said.stderr
    assert "0 failures" in said.stdout
