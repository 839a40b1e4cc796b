"""The compiled parts: what is in them, and that the CUDA one is refused, not crashed, where torch has no CUDA."""

import re
import subprocess
from pathlib import Path

import pytest
import torch

import pointpeft
from benchmarks import ptxas
from pointpeft import _C
from pointpeft.ops.core import library as _library

PACKAGE = Path(pointpeft.__file__).parent
CSRC = Path(__file__).resolve().parent.parent / "csrc"
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


@pytest.fixture(scope="module")
def kernels():
    return ptxas.parse(ptxas.cuobjdump(CUDA_LIBRARY))


@needs_cuda_library
def test_kernels_keep_their_data_in_registers(kernels):
    # On sm_100 and sm_120 ptxas puts two or four registers of the widest kernels on the stack.
    allowed = {"sm_80": 0, "sm_90": 0}
    assert kernels
    spilling = [kernel for kernel in kernels if kernel.stack > allowed.get(kernel.arch, 16) or kernel.local]
    assert not spilling, spilling


@needs_cuda_library
def test_every_kernel_has_code_for_every_architecture(kernels):
    wanted = {"sm_" + entry.removesuffix("+PTX").replace(".", "") for entry in _C.cuda_archs.split(";")}
    written = {
        name
        for path in CSRC.rglob("*.cu")
        for name in re.findall(r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(", path.read_text())
    }
    assert written
    for arch in wanted:
        compiled = [kernel.kernel for kernel in kernels if kernel.arch == arch]
        for name in written:
            assert any(name in mangled for mangled in compiled), f"{name} has no code for {arch}"


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
    with pytest.raises(RuntimeError, match="must be portable, avx2, avx512 or amx, got fast"):
        _C.cpu_level()
