"""The warp functions of the CUDA kernels, compiled for the host and run on 32 emulated lanes: no GPU is needed."""

import re
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


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_products_of_many_channels_on_the_host(tmp_path):
    run(tmp_path, "knn_products")


def test_no_cuda_kernel_leaves_its_products_to_pytorch():
    # Its switches for TF32 would round the factors, and |q|² - 2 q·s + |s|² cancels the digits that are left.
    assert "batch_product" in (CSRC / "points" / "knn" / "knn.cpp").read_text()
    for path in [*CSRC.rglob("*.cu"), *CSRC.rglob("*.cuh")]:
        assert not re.search(r"batch_product|\bmatmul\b|aten::(b?mm|baddbmm|addmm|matmul|linear)", path.read_text()), (
            path
        )


def run(folder, name, *more):
    program = folder / name
    flags = ["-std=c++20", "-O1", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas", "-Werror", f"-I{CSRC}"]
    subprocess.run(["g++", *flags, *more, HERE / f"{name}.cpp", "-o", program], check=True)
    said = subprocess.run([program], capture_output=True, text=True)
    assert said.returncode == 0, said.stdout + said.stderr
    assert " 0 failures" in said.stdout
