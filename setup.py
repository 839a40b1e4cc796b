"""Builds csrc/ with ninja into three parts of the package.

  pointpeft/_cpu.so      the operations' schemas and CPU kernels              csrc/**/*.cpp but module.cpp
  pointpeft/_cuda.so     their CUDA kernels, where there is an nvcc            csrc/**/*.cu
  pointpeft/_C.*.so      facts of this build, for `pointpeft info` (pybind11)  csrc/common/module.cpp

The first two use only the LibTorch stable ABI: they serve every torch >= 2.10 and every Python, and the CUDA one
compiles against a CPU-only torch. Environment: POINTPEFT_CUDA=0 leaves CUDA out, =1 makes a missing nvcc an error;
TORCH_CUDA_ARCH_LIST picks the targets; CUDA_HOME, CXX, MAX_JOBS as usual; ccache is used where it is on PATH.
POINTPEFT_SANITIZE=1 compiles the CPU part for AddressSanitizer and UndefinedBehaviorSanitizer, for .ci/sanitize.
"""

import importlib.util
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path
from shlex import quote

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
TARGET_VERSION = "0x020a000000000000"  # torch 2.10, the oldest libtorch the libraries run on
DEFAULT_ARCHS = "8.0;9.0;10.0;12.0+PTX"
# Frame pointers and symbols for readable reports; undefined behaviour ends the process instead of a line on stderr.
SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=all"
SANITIZE_FLAGS = f"{SANITIZERS} -O1 -g -fno-omit-frame-pointer"


def find_torch() -> Path | None:
    """The package folder of the installed torch, also from inside pip's isolated build environment."""
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin:
        return Path(spec.origin).parent
    # An isolated build hides site-packages from sys.path, but not from sysconfig.
    places = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    config = Path(sys.prefix) / "pyvenv.cfg"
    in_venv = config.is_file()
    if not in_venv or re.search(r"include-system-site-packages\s*=\s*true", config.read_text(), re.I):
        places += [site.getusersitepackages(), *site.getsitepackages([sys.base_prefix])]
    for place in places:
        package = Path(place) / "torch"
        if (package / "include" / "torch" / "csrc" / "stable").is_dir():
            return package
    return None


def find_nvcc() -> str | None:
    """The CUDA compiler to use, or None; POINTPEFT_CUDA decides where it is set."""
    wish = os.environ.get("POINTPEFT_CUDA", "auto")
    if wish not in ("0", "1", "auto"):
        raise SystemExit(f"POINTPEFT_CUDA must be 0, 1 or auto, got {wish!r}")
    if wish == "0":
        return None
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    nvcc = shutil.which("nvcc", path=f"{home}/bin") or shutil.which("nvcc")
    if nvcc is None and wish == "1":
        raise SystemExit(f"POINTPEFT_CUDA=1, but there is no nvcc on PATH or in {home}/bin")
    return nvcc


def sanitize() -> bool:
    """Whether POINTPEFT_SANITIZE asks for checked CPU code."""
    wish = os.environ.get("POINTPEFT_SANITIZE", "0")
    if wish not in ("0", "1"):
        raise SystemExit(f"POINTPEFT_SANITIZE must be 0 or 1, got {wish!r}")
    return wish == "1"


def cuda_archs() -> list[str]:
    """Targets in the form of TORCH_CUDA_ARCH_LIST: what it says, else the visible GPUs, else all since Ampere."""
    wish = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if not wish and shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        seen = subprocess.run(query, capture_output=True, text=True, check=False)
        if seen.returncode == 0:
            wish = ";".join(sorted(set(seen.stdout.split())))
    archs = re.split(r"[;\s]+", (wish or DEFAULT_ARCHS).strip())
    for arch in archs:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", arch):
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST must hold versions like 9.0 or 12.0+PTX, got {arch!r}")
    return archs


def gencode(arch: str) -> str:
    """The nvcc flag for one entry of the arch list."""
    number = arch.removesuffix("+PTX").replace(".", "")
    code = f"[sm_{number},compute_{number}]" if arch.endswith("+PTX") else f"sm_{number}"
    return f"-gencode=arch=compute_{number},code={code}"


class Library(Extension):
    """A plain shared library inside the package, loaded by torch.ops.load_library: no Python in its name."""


class NinjaBuild(build_ext):
    """One ninja graph for all parts: parallel, and a rebuild compiles only what changed."""

    def get_ext_filename(self, fullname: str) -> str:
        """Libraries are called NAME.so, whatever the Python."""
        if isinstance(self.ext_map.get(fullname) or self.ext_map.get(f"pointpeft.{fullname}"), Library):
            return os.path.join(*fullname.split(".")) + ".so"
        return super().get_ext_filename(fullname)

    def build_extensions(self):
        """Writes build/ninja/build.ninja and runs it."""
        import ninja  # build requirements, absent when setup.py only answers questions
        import pybind11

        torch = find_torch()
        if torch is None:
            raise SystemExit("pointpeft needs torch >= 2.10 to compile its operations, and found none")
        folder = ROOT / "build" / "ninja"
        folder.mkdir(parents=True, exist_ok=True)
        launcher = "ccache " if shutil.which("ccache") else ""
        cxx, nvcc, archs = os.environ.get("CXX", "g++"), find_nvcc(), cuda_archs() if find_nvcc() else []
        headers = f"-isystem {quote(str(torch / 'include'))} -I{quote(str(ROOT / 'csrc'))}"
        stable = f"-DTORCH_TARGET_VERSION={TARGET_VERSION} {headers}"
        # No contraction to fused multiply-add anywhere: CPU, CUDA and the PyTorch reference round alike,
        # so that they agree index for index.
        cxxflags = "-O3 -std=c++17 -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall"
        strip = "-s"
        if sanitize():
            cxxflags, strip = f"{cxxflags} {SANITIZE_FLAGS}", SANITIZERS
        defined = {"POINTPEFT_CUDA_ARCHS": ";".join(archs), "POINTPEFT_NVCC": nvcc_version(nvcc)}
        facts = " ".join(quote(f'-D{name}="{value}"') for name, value in defined.items())
        python = f"-I{quote(pybind11.get_include())} -I{quote(sysconfig.get_path('include'))}"
        links = f"-L{quote(str(torch / 'lib'))} -Wl,--no-as-needed -ltorch -ltorch_cpu -lc10"
        text = f"""
rule cxx
  command = {launcher}{cxx} {cxxflags} {stable} $flags -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = {cxx} -shared {strip} $in -o $out $flags
"""
        if nvcc:
            targets = " ".join(gencode(arch) for arch in archs)
            text += f"""
rule cuda
  command = {launcher}{nvcc} -O3 -std=c++17 -fmad=false -Xcompiler=-fPIC,-fvisibility=hidden -DUSE_CUDA {targets} $
    {stable} -MD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link_cuda
  command = {nvcc} -shared -cudart=static {targets} $in -o $out -L{quote(str(torch / "lib"))} -Xlinker=--no-as-needed $
    -ltorch -ltorch_cpu -lc10
"""
        for extension in self.extensions:
            target = Path(self.get_ext_fullpath(extension.name)).resolve()
            target.parent.mkdir(parents=True, exist_ok=True)
            cuda = extension.sources[0].endswith(".cu")
            module = not isinstance(extension, Library)
            objects = []
            for source in extension.sources:
                objects.append(f"{Path(source).name}.o")
                flags = f"{python} {facts}" if module else ""
                text += f"build {objects[-1]}: {'cuda' if cuda else 'cxx'} {escape(ROOT / source)}\n  flags = {flags}\n"
            rule, flags = ("link_cuda", "") if cuda else ("link", "" if module else links)
            text += f"build {escape(target)}: {rule} {' '.join(objects)}\n  flags = {flags}\n"
        (folder / "build.ninja").write_text(text)
        jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
        subprocess.run([Path(ninja.BIN_DIR) / "ninja", "-C", folder, *jobs], check=True)
        self.drop_old_kernels()

    def copy_extensions_to_source(self):
        """Puts an editable build into the package."""
        self.drop_old_kernels()
        super().copy_extensions_to_source()

    def drop_old_kernels(self):
        """Deletes CUDA kernels of an older build where this one has none: they may not fit its operations."""
        if not find_nvcc():
            Path(self.get_ext_fullpath("pointpeft._cpu")).resolve().with_name("_cuda.so").unlink(missing_ok=True)


def escape(path: Path) -> str:
    """A path in ninja's syntax."""
    return re.sub(r"([$ :])", r"$\1", str(path))


def nvcc_version(nvcc: str | None) -> str:
    """The release of nvcc, such as 13.0.88, or an empty string."""
    if nvcc is None:
        return ""
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"V(\d[\d.]*)", said)
    if found is None:
        raise SystemExit(f"{nvcc} --version names no release: {said!r}")
    return found[1]


def sources(pattern: str) -> list[str]:
    """Sorted files of csrc, relative to this file as setuptools wants them."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob(pattern))


extensions = [
    Library("pointpeft._cpu", [source for source in sources("*.cpp") if not source.endswith("module.cpp")]),
    Extension("pointpeft._C", ["csrc/common/module.cpp"]),
]
if find_nvcc():
    extensions.insert(1, Library("pointpeft._cuda", sources("*.cu")))

setup(
    ext_modules=extensions,
    cmdclass={"build_ext": NinjaBuild},
    setup_requires=[] if find_torch() else ["torch>=2.10"],
)
