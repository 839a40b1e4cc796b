"""Builds the libraries of this checkout in place, for the visible GPU alone: seconds, where all GPUs take minutes.

python -m benchmarks.gpu.build --output build.json
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu import files
from benchmarks.gpu.runner import ROOT

# Compiles the extensions that benchmarks restate, beside our own.
RESTATED = """
from benchmarks import classic
classic.build(classic.HERE.parent / "build" / "classic", "{}".replace(".", ""))
"""


def visible_arch() -> str:
    """The compute capability of the first GPU, such as 9.0.

    Raises:
        RuntimeError: There is none.
    """
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        seen = subprocess.run(query, capture_output=True, text=True, check=False)
        if seen.returncode == 0 and seen.stdout.strip():
            return seen.stdout.split()[0]
    import torch  # seconds, where nvidia-smi answers at once

    return "{}.{}".format(*torch.cuda.get_device_capability())


def command_and_environment(arch: str, rehearse: bool) -> tuple[list[str], dict[str, str]]:
    """What is run; a rehearsal asks setup.py for the version alone."""
    work = ["--version"] if rehearse else ["build_ext", "--inplace"]
    environment = {"TORCH_CUDA_ARCH_LIST": arch, "POINTPEFT_CUDA": "0" if rehearse else "1"}
    return [sys.executable, "setup.py", "-q", *work], environment


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rehearse", action="store_true", help="compile nothing")
    given = parser.parse_args()
    arch = "9.0" if given.rehearse else visible_arch()
    command, more = command_and_environment(arch, given.rehearse)
    begin = time.perf_counter()
    restated = None if given.rehearse else subprocess.Popen([sys.executable, "-c", RESTATED.format(arch)], cwd=ROOT)
    done = subprocess.run(command, cwd=ROOT, env=os.environ | more, check=False)
    result = {**more, "seconds": round(time.perf_counter() - begin, 1), "exit": done.returncode}
    files.write(given.output, result)
    if restated is not None:  # peers alone: what fails here leaves out their rows
        files.write(given.output, {**result, "restated_exit": restated.wait()})
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
