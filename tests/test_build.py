"""The compiled parts: what is in them, and that the CUDA one is refused, not crashed, where torch has no CUDA."""

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch

import pointpeft
from pointpeft import _C
from pointpeft.ops import _library

PACKAGE = Path(pointpeft.__file__).parent
CSRC = PACKAGE.parent / "csrc"
CUDA_LIBRARY = PACKAGE / "_cuda.so"
needs_cuda_library = pytest.mark.skipif(not CUDA_LIBRARY.is_file(), reason="no nvcc when the package was built")


def test_the_cpu_library_is_live():
    assert _library.PARTS["cpu"].live
    assert _library.backend("cpu") == "compiled"


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_the_cuda_library_is_refused_with_a_reason_on_a_cpu_only_torch():
    part = _library.PARTS["cuda"]
    assert not part.live
    assert "built without CUDA" in part.reason
    assert "install" in part.remedy
    assert _library.backend("cuda") == "reference"


def resource_usage() -> str:
    """What cuobjdump says of the kernels in the CUDA library: architecture, name, registers, stack."""
    places = [*Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin"), "/usr/local/cuda/bin", os.environ["PATH"]]
    cuobjdump = shutil.which("cuobjdump", path=os.pathsep.join(map(str, places)))
    assert cuobjdump, "the test extra brings nvidia-cuda-cuobjdump"
    said = subprocess.run([cuobjdump, "-res-usage", CUDA_LIBRARY], capture_output=True, text=True, check=True)
    return said.stdout + said.stderr


@needs_cuda_library
def test_kernels_keep_their_data_in_registers():
    # On sm_100 and sm_120 ptxas puts two or four registers of the widest kernels on the stack.
    allowed = {"sm_80": 0, "sm_90": 0}
    spilling, arch, name, kernels = [], "", "", 0
    for line in resource_usage().splitlines():
        if found := re.search(r"arch = (sm_\w+)", line):
            arch = found.group(1)
        if found := re.search(r"Function (\S+):", line):
            name = found.group(1)
        if found := re.search(r"STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", line):
            kernels += 1
            if int(found.group(1)) > allowed.get(arch, 16) or found.group(2) != "0":
                spilling.append(f"{name} on {arch}: {found.group(0)}")
    assert kernels > 0
    assert not spilling, spilling


@needs_cuda_library
def test_every_kernel_has_code_for_every_architecture():
    listing = resource_usage()
    kernels: dict[str, set[str]] = {}
    arch = ""
    for line in listing.splitlines():
        if found := re.search(r"arch = (sm_\w+)", line):
            arch = found.group(1)
        if found := re.search(r"Function (\S+):", line):
            kernels.setdefault(arch, set()).add(found.group(1))
    wanted = {"sm_" + entry.removesuffix("+PTX").replace(".", "") for entry in _C.cuda_archs.split(";")}
    assert wanted <= set(kernels)
    sources = {path.stem for path in CSRC.glob("*.cu")}
    written = {
        name
        for path in CSRC.glob("*.cu")
        for name in re.findall(r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(", path.read_text())
    }
    assert sources
    assert written
    for arch in wanted:
        for name in written:
            assert any(name in mangled for mangled in kernels[arch]), f"{name} has no code for {arch}"


@needs_cuda_library
def test_the_libraries_name_no_cuda_runtime_and_no_python():
    for library in (PACKAGE / "_cpu.so", CUDA_LIBRARY):
        needed = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
        assert "libtorch_cpu.so" in needed
        assert "libpython" not in needed
        assert "libtorch_python" not in needed
        assert "libcudart" not in needed


def test_cpu_level_can_be_lowered_and_not_misspelt(monkeypatch):
    monkeypatch.setenv("POINTPEFT_CPU_LEVEL", "portable")
    assert _C.cpu_level() == "portable"
    monkeypatch.setenv("POINTPEFT_CPU_LEVEL", "fast")
    with pytest.raises(RuntimeError, match="must be portable, avx2 or avx512, got fast"):
        _C.cpu_level()
