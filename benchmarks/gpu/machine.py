"""What the machine is and can do; with `--require-compiled` it ends with 1 where our kernels would not be the ones run.

python -m benchmarks.gpu.machine --device cuda --output machine.json --require-compiled
"""

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import timing
from benchmarks.gpu import files

PEERS = ("cupy", "cuml", "pytorch3d", "pykeops", "torch_cluster", "torch_fps", "torch_quickfps", "torch_geometric")
PACKAGES = (
    "accelerate",
    "h5py",
    "hypothesis",
    "ninja",
    "numpy",
    "pybind11",
    "pytest",
    "pytest_benchmark",
    "safetensors",
)
PACKAGES += ("torchmetrics", "tqdm", "triton", "tyro", "xdist", "yaml")
QUERY = "name,driver_version,memory.total,clocks.max.sm,clocks.max.memory,power.limit"


def said_by(*command: str) -> str:
    """The output of a program, or why there is none."""
    program = shutil.which(command[0]) or shutil.which(command[0], path="/usr/local/cuda/bin")
    if program is None:
        return f"no {command[0]} on PATH"
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip()


def version_of(package: str) -> str | None:
    """The version of an installed package, None of one that is missing."""
    if importlib.util.find_spec(package) is None:
        return None
    names = importlib.metadata.packages_distributions().get(package, [package])
    try:
        return importlib.metadata.version(names[0])
    except importlib.metadata.PackageNotFoundError:
        return "?"


def facts(device: str) -> dict[str, Any]:
    """Names and versions; nothing that tells the machine from another of its kind."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "nvcc": said_by("nvcc", "--version").splitlines()[-1],
        "cpus": os.cpu_count(),
        "packages": {name: version_of(name) for name in PACKAGES},
        "peers": {name: version_of(name) for name in PEERS},
        "gpu": None,
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "processors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "memory_bytes": properties.total_memory,
            "nvidia_smi": said_by("nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"),
        }
    return found


def faults(device: str) -> list[str]:
    """Why our kernels would not be what runs on the device; nothing where they are."""
    from pointpeft.ops import backend
    from pointpeft.ops.core import library, triton_launch

    found = []
    if backend(device) != "compiled":
        found.append(f"operations on {device} run on plain PyTorch: {library.status_of(device).reason}")
    if device == "cuda":
        if not triton_launch.available():
            found.append("Triton is not installed")
        elif triton_launch.interpreted():
            found.append("TRITON_INTERPRET=1: Triton kernels would run in its interpreter")
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--require-compiled", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="without what takes seconds")
    given = parser.parse_args()
    result = facts(given.device)
    if given.require_compiled:
        result["faults"] = faults(given.device)
    files.write(given.output, result)
    if result.get("faults"):
        sys.exit("\n".join(result["faults"]))
    if given.tiny:
        return
    result["limits"] = timing.measure_limits(given.device)
    files.write(given.output, result)


if __name__ == "__main__":
    main()
