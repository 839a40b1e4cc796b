"""Compiles translated kernels and the emulator into a library for one architecture.

Objects and libraries lie under build/emulation by the hash of what they are made of: nothing is compiled twice, and a
change of a header compiles what includes it alone. Objects that do not look at the architecture serve all of them.
"""

import fcntl
import functools
import hashlib
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from tests.csrc.emulation import translation

HERE = Path(__file__).resolve().parent
FOLDER = translation.ROOT / "build" / "emulation"
TORCH = Path(torch.__file__).parent
# The preprocessor puts ours, of runtime.cpp, in the place of PyTorch's.
RENAMED = {
    "torch_get_const_data_ptr": "emulated_const_data_ptr",
    "torch_get_mutable_data_ptr": "emulated_mutable_data_ptr",
    "aoti_torch_get_data_ptr": "emulated_data_ptr",
    "aoti_torch_get_device_index": "emulated_device_index",
    "aoti_torch_create_device_guard": "emulated_create_guard",
    "aoti_torch_delete_device_guard": "emulated_delete_guard",
    "aoti_torch_get_current_cuda_stream": "emulated_current_stream",
}
COMMON = ["-std=c++17", "-g1", "-fPIC", "-fvisibility=hidden", "-Wno-unknown-pragmas"]
COMMON += ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem", str(TORCH / "include"), f"-I{HERE}"]
# Every access calls a hook of memory.cpp, undefined behaviour one of errors.cpp. Products and sums round one by one, as
# nvcc's do under -fmad=false.
KERNEL = ["-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-DUSE_CUDA", "-include", "cuda_runtime.h"]
KERNEL += ["-fsanitize=thread,alignment,bounds,shift,signed-integer-overflow"]
KERNEL += ["--param=tsan-instrument-func-entry-exit=0", *(f"-D{old}={new}" for old, new in RENAMED.items())]
EMULATOR = ["-O2", "-Wall"]
SYSTEM = [f"-L{TORCH / 'lib'}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10", "-ldl"]


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "g++"))


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


@functools.cache
def environment() -> str:
    """The hash of what every object depends on: compiler, torch, the emulator's headers and flags."""
    version = subprocess.run([*compiler(), "--version"], capture_output=True, text=True, check=True).stdout
    headers = [path.read_text(encoding="utf-8") for path in sorted(HERE.glob("*.h"))]
    return digest(version, torch.__version__, str(TORCH), str(HERE), *headers, *COMMON, *KERNEL, *EMULATOR)


def included(name: str, sources: Mapping[str, str]) -> list[str]:
    """A file and the project's files that it includes, directly or not, in the order of their names."""
    found, waiting = {name}, [name]
    while waiting:
        current = waiting.pop()
        for include in re.findall(r'^#include "([^"]+)"', sources[current], re.M):
            for folder in (Path(current).parent, Path("csrc")):
                path = os.path.normpath(folder / include).replace(os.sep, "/")
                if path in sources and path not in found:
                    found.add(path)
                    waiting.append(path)
    return sorted(found)


def seen_architecture(texts: list[str], architecture: int) -> int:
    """The smallest architecture whose code of these files is the same as that of `architecture`."""
    bounds = [0]
    for text in texts:
        places = len(re.findall(r"__CUDA_ARCH__", text))
        compared = re.findall(r"__CUDA_ARCH__ (>=|<) (\d+)", text)
        if places != len(compared):
            return architecture
        bounds += [int(bound) // 10 for _, bound in compared]
    return max(bound for bound in bounds if bound <= architecture)


def run(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(str(word) for word in command)}\n{done.stderr[-8000:]}")


def make(target: Path, *command: object) -> Path:
    """Runs a command that writes `target`, unless it is there or another process is at it; it appears whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_name(f"{target.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            partial = target.with_name(f"{os.getpid()}.{target.name}")
            run(*command, "-o", partial)
            partial.replace(target)
    return target


def compile_kernels(name: str, sources: Mapping[str, str], architecture: int) -> Path:
    """The object of one .cu file."""
    names = included(name, sources)
    seen = seen_architecture([sources[one] for one in names], architecture)
    texts = {one: translation.translate(one, sources[one], seen) for one in names}
    key = digest(environment(), name, *texts, *texts.values())
    target = FOLDER / "objects" / f"{Path(name).stem}_{key}.o"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory() as folder:
        for one, text in texts.items():
            path = Path(folder, one)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        flags = [*COMMON, *KERNEL, f"-I{folder}/csrc", "-x", "c++"]
        return make(target, *compiler(), *flags, "-c", Path(folder, name))


def compile_emulator(path: Path) -> Path:
    """The object of one file of the emulator itself."""
    key = digest(environment(), path.read_text(encoding="utf-8"))
    return make(FOLDER / "objects" / f"{path.stem}_{key}.o", *compiler(), *COMMON, *EMULATOR, "-c", path)


def build(
    architecture: int, sources: Mapping[str, str] | None = None, only: list[str] | None = None
) -> tuple[Path, str]:
    """The shared library of the kernels as compiled for `architecture`, and the name that its operations go by.

    `sources` replaces the project's files; `only` names the .cu files to take, by default all.
    """
    sources = translation.sources() if sources is None else sources
    kernels = [name for name in sources if name.endswith(".cu") and (only is None or name in only)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(compile_kernels, name, sources, architecture) for name in kernels]
        jobs += [pool.submit(compile_emulator, path) for path in sorted(HERE.glob("*.cpp"))]
        objects = [job.result() for job in jobs]
    library = f"pointpeft_emulated_sm{architecture}_{digest(*(path.name for path in objects))}"
    with tempfile.TemporaryDirectory() as folder:
        naming = Path(folder, "name.cpp")
        text = f'#include "emulation.h"\nconst char* emulation::library_name() {{ return "{library}"; }}\n'
        naming.write_text(text, encoding="utf-8")
        flags = [*COMMON, "-shared", "-Wl,-Bsymbolic", "-Wl,-z,defs"]
        return make(FOLDER / f"{library}.so", *compiler(), *flags, naming, *objects, *SYSTEM), library
