"""What a wheel holds, asked of setuptools without compiling."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("setuptools", minversion="77")

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 4 * 2**20  # bytes of one file; larger weights stay in a checkout
PREPARED = """
import json, sys
import setuptools  # first: it brings the distutils that the next line means
from distutils.core import run_setup

dist = run_setup("setup.py", ["--quiet", "build_py", "--build-lib", sys.argv[1]], stop_after="commandline")
libraries = dist.get_command_obj("build_ext")
libraries.build_lib, libraries.inplace = sys.argv[1], False
libraries.ensure_finalized()
"""
COPIED = """
print(json.dumps(libraries.get_outputs()))
dist.run_commands()
"""


def run_python(code, folder, **settings):
    """What a Python says that runs `code` for a build into `folder`."""
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | settings, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def wheel(folder, cuda):
    """Names of the files that a build copies, and of the libraries that it would compile."""
    done = run_python(PREPARED + COPIED, folder, POINTPEFT_CUDA=cuda)
    copied = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    libraries = {Path(path).relative_to(folder).as_posix() for path in json.loads(done.splitlines()[0])}
    return copied, libraries


def test_a_wheel_holds_the_package_its_data_and_nothing_else(tmp_path):
    copied, libraries = wheel(tmp_path, "0")
    python = {path.relative_to(ROOT).as_posix() for path in (ROOT / "pointpeft").rglob("*.py")}
    assert {name for name in copied if name.endswith(".py")} == python
    weights = {f"pointpeft/weights/shipped/{name}" for name in ("README.md", "point_mae_tiny.md")}
    weights |= {"pointpeft/weights/shipped/point_mae_tiny.safetensors"}
    data = {f"pointpeft/data/embedded/{name}" for name in ("furniture.h5", "items.tsv", "CREDITS")}
    assert copied - python == {"pointpeft/py.typed"} | weights | data
    assert all((tmp_path / name).stat().st_size < LARGEST for name in copied)
    module = {name for name in libraries if name.startswith("pointpeft/_C.")}
    assert len(module) == 1
    assert libraries - module == {"pointpeft/_cpu.so"}


@pytest.mark.skipif(
    not shutil.which("nvcc", path=f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin") and not shutil.which("nvcc"),
    reason="no nvcc",
)
def test_a_wheel_built_where_there_is_nvcc_holds_the_cuda_library(tmp_path):
    assert {"pointpeft/_cpu.so", "pointpeft/_cuda.so"} <= wheel(tmp_path, "1")[1]


@pytest.mark.parametrize("cuda", ["0", "1"])
def test_a_build_without_cuda_deletes_kernels_of_an_older_one(tmp_path, cuda):
    nvcc, kernels = tmp_path / "cuda" / "bin" / "nvcc", tmp_path / "pointpeft" / "_cuda.so"
    for file in (nvcc, kernels):
        file.parent.mkdir(parents=True)
        file.touch(mode=0o755)
    drop = PREPARED + "libraries.drop_old_kernels()"
    run_python(drop, tmp_path, POINTPEFT_CUDA=cuda, CUDA_HOME=str(tmp_path / "cuda"))
    assert kernels.exists() == (cuda == "1")
