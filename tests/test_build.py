"""The compiled parts: what is in them, and that the CUDA one is refused, not crashed, where torch has no CUDA."""

import os
import re
import shutil
import subprocess
import sys
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
    assert _library.LIBRARIES["cpu"].live
    assert _library.backend("cpu") == "compiled"


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_the_cuda_library_is_refused_with_a_reason_on_a_cpu_only_torch():
    part = _library.LIBRARIES["cuda"]
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
    with pytest.raises(ValueError, match="must be portable, avx2, avx512 or amx, got fast"):
        _C.cpu_level()


SOURCE = CSRC.parent
ASKED = """
import sys, setuptools
from distutils.core import run_setup

sys.orig_argv = ["python", *sys.argv[2:]]
dist = run_setup("setup.py", ["--quiet", "egg_info"], stop_after="init")
print([extension.name for extension in dist.ext_modules], dist.setup_requires or [])
"""


def asked(torch_folder, *orig_argv, **settings):
    """The libraries that setup.py would compile and what it needs, beside a torch of our making."""
    code = ASKED.replace("import sys, setuptools", f"import sys, setuptools; sys.path.insert(0, {str(torch_folder)!r})")
    env = {name: value for name, value in os.environ.items() if name != "POINTPEFT_CUDA"} | settings
    command = [sys.executable, "-c", code, "", *orig_argv]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SOURCE, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def nvcc(tmp_path):
    """A CUDA home whose compiler is only looked for."""
    compiler = tmp_path / "cuda" / "bin" / "nvcc"
    compiler.parent.mkdir(parents=True)
    compiler.touch(mode=0o755)
    return tmp_path / "cuda"


@pytest.fixture
def made_up_torch(tmp_path):
    package = tmp_path / "packages" / "torch"
    (package / "lib").mkdir(parents=True)
    (package / "__init__.py").touch()
    return package


def test_cuda_is_compiled_for_a_torch_with_cuda_or_where_it_is_forced(nvcc, made_up_torch):
    packages = made_up_torch.parent
    settings = {"CUDA_HOME": str(nvcc)}
    assert "_cuda" not in asked(packages, **settings)
    assert "_cuda" in asked(packages, **settings, POINTPEFT_CUDA="1")
    (made_up_torch / "lib" / "libtorch_cuda.so").touch()
    assert "_cuda" in asked(packages, **settings)
    assert "_cuda" not in asked(packages, **settings, POINTPEFT_CUDA="0")


def build(tmp_path, *arguments, **settings):
    """What a build says and how it ends, in a copy of the sources."""
    for name in ("csrc", "pointpeft"):
        shutil.copytree(SOURCE / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(SOURCE / name, tmp_path)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", *arguments]
    env = {name: value for name, value in os.environ.items() if name != "CXX"} | settings
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)


NEEDED = "pointpeft needs g++ 10 or later, or clang 14 or later: `apt install g++` brings one on Debian and Ubuntu, "


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"PATH": "/nowhere"}, "there is neither g++ nor clang++ on PATH"),
        ({"CXX": "no-such-compiler"}, "CXX=no-such-compiler does not run: No such file or directory"),
        ({"CXX": "false"}, "CXX=false cannot compile it: it ended with 1"),
    ],
)
def test_without_a_compiler_a_build_ends_in_one_sentence(tmp_path, settings, reason):
    done = build(tmp_path, **settings, POINTPEFT_CUDA="0")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == f"{NEEDED}`dnf install gcc-c++` on Fedora; {reason}"
    assert "Traceback" not in done.stderr


def test_a_compiler_that_is_too_old_is_named(tmp_path):
    compiler = tmp_path / "old"
    compiler.write_text('#!/bin/sh\nexec g++ -U__GNUC__ -D__GNUC__=9 "$@"\n')
    compiler.chmod(0o755)
    done = build(tmp_path / "tree", CXX=str(compiler), POINTPEFT_CUDA="0")
    assert done.returncode == 1
    assert f"CXX={compiler} cannot compile it" in done.stderr
    assert "too old" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_does_not_compile_ends_a_build_without_a_traceback(tmp_path):
    tree = tmp_path / "tree"
    flags = f"g++ -include {tmp_path / 'broken.h'}"
    (tmp_path / "broken.h").write_text("#if defined(TORCH_TARGET_VERSION)\n#error broken\n#endif\n")
    done = build(tree, CXX=flags, POINTPEFT_CUDA="0")
    assert done.returncode == 1
    assert "pointpeft could not be compiled: the messages above are the compiler's" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_source_distribution_needs_no_torch(tmp_path):
    code = """
import importlib.util, sys
sys.orig_argv = ["python", "_in_process.py", sys.argv[1], "folder"]
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find_spec(name, *rest)
import setuptools, site, sysconfig
from distutils.core import run_setup
get_path = sysconfig.get_path
sysconfig.get_path = lambda *names: "/nowhere" if names[0] in ("purelib", "platlib") else get_path(*names)
site.getusersitepackages, site.getsitepackages = lambda: "/nowhere", lambda *prefixes: []
asked = []
setuptools.Distribution.fetch_build_eggs = lambda self, requirements: asked.extend(map(str, requirements)) or []
run_setup("setup.py", ["--quiet", "--name"], stop_after="init")
print(asked)
"""
    env = os.environ | {"POINTPEFT_CUDA": "0"}
    answers = {
        hook: subprocess.run(
            [sys.executable, "-c", code, hook], capture_output=True, text=True, cwd=SOURCE, env=env, check=True
        ).stdout
        for hook in ("get_requires_for_build_sdist", "get_requires_for_build_wheel")
    }
    assert "torch" not in answers["get_requires_for_build_sdist"]
    assert "torch>=2.10" in answers["get_requires_for_build_wheel"]


@pytest.mark.parametrize("compiler", ["g++-10", "g++-11", "clang++-14"])
@pytest.mark.parametrize(
    "source", ["frozen/_attention.cpp", "points/furthest_point_sample/furthest_point_sample.cpp", "points/knn/knn.cpp"]
)
def test_the_oldest_compilers_take_what_others_refused(compiler, source):
    if not shutil.which(compiler):
        pytest.skip(f"there is no {compiler}")
    includes = ["-isystem", Path(torch.__file__).parent / "include", "-I", CSRC]
    command = [compiler, "-std=c++17", "-DTORCH_TARGET_VERSION=0x020a000000000000", *includes, "-Wall", "-fsyntax-only"]
    command += ["-fvisibility=hidden"]  # as setup.py has it
    done = subprocess.run([*command, CSRC / source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "attribute" not in done.stderr  # clang ignores an attribute that it does not know


def test_the_compiler_is_named():
    assert re.match(r"(g\+\+|clang) \d+", _C.compiler)
