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
    run(tmp_path, "device_functions", f"-D__CUDA_ARCH__={arch}")


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_gathering_and_pooling_on_the_host(tmp_path):
    run(tmp_path, "aggregation", "-Wno-maybe-uninitialized")  # it does not see that S >= 1


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_the_chamfer_distance_on_the_host(tmp_path):
    run(tmp_path, "chamfer_distance")


def run(folder, name, *more):
    program = folder / name
    flags = ["-std=c++20", "-O1", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas", "-Werror", f"-I{CSRC}"]
    subprocess.run(["g++", *flags, *more, HERE / f"{name}.cpp", "-o", program], check=True)
    said = subprocess.run([program], capture_output=True, text=True)
    assert said.returncode == 0, said.stdout + said.stderr
    assert " 0 failures" in said.stdout
