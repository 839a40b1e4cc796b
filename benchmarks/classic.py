"""The classic CUDA extensions restated in classic.cu: compiled with nvcc when a benchmark on a GPU first asks.

pointnet2_ops and KNN_CUDA do not build against a current torch; rows with their algorithms are labelled "restated".
"""

import hashlib
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent / "csrc"


def find_nvcc() -> str | None:
    """The CUDA compiler, or None."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc", path=f"{home}/bin") or shutil.which("nvcc")


def build(folder: Path, arch: str) -> Path:
    """Compiles classic.cu into `folder` unless it is there already.

    Args:
        folder: Where the library goes.
        arch: The GPU's compute capability without its point, such as "90".

    Returns:
        The library.

    Raises:
        FileNotFoundError: There is no nvcc.
        subprocess.CalledProcessError: It refused the source.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise FileNotFoundError("classic.cu needs nvcc on PATH or in CUDA_HOME/bin")
    package = Path(torch.__file__).parent
    source = HERE / "classic.cu"
    read = b"".join(path.read_bytes() for path in (source, CSRC / "common" / "pointpeft.h"))
    name = f"classic-{arch}-{torch.__version__}-{hashlib.sha256(read).hexdigest()[:16]}.so"
    if not (folder / name).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{name}.{os.getpid()}"
        # As in setup.py, but with the fused multiply-add that those extensions are compiled with.
        command = [nvcc, "-O3", "-std=c++17", "-shared", "-cudart=static", "-Xcompiler=-fPIC,-fvisibility=hidden"]
        command += ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
        command += [f"-gencode=arch=compute_{arch},code=sm_{arch}", "-isystem", package / "include", f"-I{CSRC}"]
        command += [f"-L{package / 'lib'}", "-Xlinker=--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10"]
        subprocess.run([*command, source, "-o", part], check=True)
        part.replace(folder / name)
    return folder / name


@cache
def _operations() -> Any:
    if find_nvcc() is None:
        pytest.skip("no nvcc to compile the classic extensions with")
    arch = "{}{}".format(*torch.cuda.get_device_capability())
    torch.ops.load_library(build(HERE.parent / "build" / "classic", arch))
    return torch.ops.pointpeft_classic


def pointnet2_sample(xyz: Tensor, num_samples: int) -> Tensor:
    """pointnet2_ops.furthest_point_sample, restated; never takes points with ‖p‖² <= 1e-3. int32, [B, K]"""
    return _operations().furthest_point_sample(xyz, num_samples)


def pointnet2_ball_query(query: Tensor, support: Tensor, radius: float, k: int) -> Tensor:
    """pointnet2_ops.ball_query, restated. int32, [B, M, K]"""
    return _operations().ball_query(query, support, radius, k)


def knn_cuda(query: Tensor, support: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """KNN_CUDA's `KNN(k, transpose_mode=True)`, restated: clouds one after another, distances not squared."""
    knn, distances, indices = _operations().knn, [], []
    for q, s in zip(query, support, strict=True):
        distance, idx = knn(s.t().contiguous(), q.t().contiguous(), k)
        distances.append(distance[:k].t().contiguous())
        indices.append(idx.t().contiguous())
    return torch.stack(distances), torch.stack(indices)
