"""Builds csrc/ with ninja into three parts of the package.

  pointpeft/_cpu.so      the operations' schemas and CPU kernels              csrc/**/*.cpp but module.cpp
  pointpeft/_cuda.so     their CUDA kernels, for a torch with CUDA and nvcc    csrc/**/*.cu
  pointpeft/_C.*.so      facts of this build, for `pointpeft info` (pybind11)  csrc/common/module.cpp

The first two use only the LibTorch stable ABI: they serve every torch >= 2.10 and every Python, and the CUDA one
compiles against a CPU-only torch. Environment: POINTPEFT_CUDA=0 leaves CUDA out, =1 compiles it whatever the torch is
and makes a missing nvcc an error; TORCH_CUDA_ARCH_LIST picks the targets; CUDA_HOME, CXX, MAX_JOBS as usual; ccache is
used where it is on PATH. Compilers: g++ 10 and later, clang 14 and later.
POINTPEFT_SANITIZE=1 compiles the CPU part for AddressSanitizer and UndefinedBehaviorSanitizer, for .ci/sanitize.
"""

import importlib.util
import os
import platform
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path
from shlex import quote, split

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
TARGET_VERSION = "0x020a000000000000"  # torch 2.10, the oldest libtorch the libraries run on
# From T4 on, all that nvcc 13 knows: 8.0 serves 8.6 and 8.9 too, 10.0 serves 10.3, 12.0 serves 12.1. PTX of 9.0, which
# the driver compiles, serves what has no machine code of its own, such as 11.0, and GPUs to come.
DEFAULT_ARCHS = "7.5;8.0;9.0+PTX;10.0;12.0"
# Frame pointers and symbols for readable reports; undefined behaviour ends the process instead of a line on stderr.
SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=all"
SANITIZE_FLAGS = f"{SANITIZERS} -O1 -g -fno-omit-frame-pointer"
COMPILER_NEEDED = (
    "pointpeft needs g++ 10 or later, or clang 14 or later: `apt install g++` brings one on Debian and Ubuntu, "
    "`dnf install gcc-c++` on Fedora"
)
COMPILER_PROBE = """
#if defined(__clang__) ? __clang_major__ < 14 : __GNUC__ < 10
#error too old
#endif
#include <optional>
"""


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


def find_compiler() -> str:
    """The C++ compiler: CXX, else g++, else clang++. Ends the build in one sentence where it cannot compile this."""
    wish = os.environ.get("CXX")
    cxx = wish or next((name for name in ("g++", "clang++") if shutil.which(name)), None)
    if cxx is None:
        raise SystemExit(f"{COMPILER_NEEDED}; there is neither g++ nor clang++ on PATH")
    named = f"CXX={cxx}" if wish else cxx
    command = [*split(cxx), "-std=c++17", "-x", "c++", "-fsyntax-only", "-"]
    try:
        done = subprocess.run(command, input=COMPILER_PROBE, capture_output=True, text=True, check=False)
    except OSError as error:
        raise SystemExit(f"{COMPILER_NEEDED}; {named} does not run: {error.strerror}") from None
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line), f"it ended with {done.returncode}")
        raise SystemExit(f"{COMPILER_NEEDED}; {named} cannot compile it: {said}")
    return cxx


def is_clang(cxx: str) -> bool:
    """Whether a compiler is clang, whatever it is called."""
    said = subprocess.run([*split(cxx), "--version"], capture_output=True, text=True, check=False).stdout
    return "clang" in said


def find_nvcc() -> str | None:
    """The CUDA compiler to use, or None; without POINTPEFT_CUDA it is used for a torch with CUDA alone."""
    wish = os.environ.get("POINTPEFT_CUDA", "auto")
    if wish not in ("0", "1", "auto"):
        raise SystemExit(f"POINTPEFT_CUDA must be 0, 1 or auto, got {wish!r}")
    if wish == "0":
        return None
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    nvcc = shutil.which("nvcc", path=f"{home}/bin") or shutil.which("nvcc")
    if nvcc is None and wish == "1":
        raise SystemExit(f"POINTPEFT_CUDA=1, but there is no nvcc on PATH or in {home}/bin")
    torch = find_torch()
    if wish == "auto" and torch is not None and not (torch / "lib" / "libtorch_cuda.so").is_file():
        return None
    return nvcc


def sanitize() -> bool:
    """Whether POINTPEFT_SANITIZE asks for checked CPU code."""
    wish = os.environ.get("POINTPEFT_SANITIZE", "0")
    if wish not in ("0", "1"):
        raise SystemExit(f"POINTPEFT_SANITIZE must be 0 or 1, got {wish!r}")
    return wish == "1"


def cuda_archs() -> list[str]:
    """Targets in the form of TORCH_CUDA_ARCH_LIST: what it says, else the visible GPUs, else all since Turing."""
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
        cxx = find_compiler()
        import ninja  # build requirements, absent when setup.py only answers questions
        import pybind11

        torch = find_torch()
        if torch is None:
            raise SystemExit("pointpeft needs torch >= 2.10 to compile its operations, and found none")
        folder = ROOT / "build" / "ninja"
        folder.mkdir(parents=True, exist_ok=True)
        launcher = "ccache " if shutil.which("ccache") else ""
        nvcc, archs = find_nvcc(), cuda_archs() if find_nvcc() else []
        if nvcc is None and shutil.which("nvcc") and "POINTPEFT_CUDA" not in os.environ:
            print(
                "pointpeft: nvcc is not used, as torch is built without CUDA; POINTPEFT_CUDA=1 uses it", file=sys.stderr
            )
        headers = f"-isystem {quote(str(torch / 'include'))} -I{quote(str(ROOT / 'csrc'))}"
        stable = f"-DTORCH_TARGET_VERSION={TARGET_VERSION} {headers}"
        # No contraction to fused multiply-add anywhere: CPU, CUDA and the PyTorch reference round alike,
        # so that they agree index for index.
        cxxflags = "-O3 -std=c++17 -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall"
        if is_clang(cxx) and platform.machine() in ("x86_64", "AMD64"):
            cxxflags += " -mprefer-vector-width=512"
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
        # Each library says of which sources it is, so that an import can tell when they have changed.
        stamp = folder / "sources.cpp"
        content = (
            f'extern "C" __attribute__((visibility("default"))) const char pointpeft_sources[] = "{fingerprint()}";\n'
        )
        if not stamp.is_file() or stamp.read_text() != content:
            stamp.write_text(content)
        text += f"build sources.o: cxx {escape(stamp)}\n"
        for extension in self.extensions:
            target = Path(self.get_ext_fullpath(extension.name)).resolve()
            target.parent.mkdir(parents=True, exist_ok=True)
            cuda = extension.sources[0].endswith(".cu")
            module = not isinstance(extension, Library)
            objects = [] if module else ["sources.o"]
            for source in extension.sources:
                objects.append(f"{Path(source).name}.o")
                flags = f"{python} {facts}" if module else ""
                text += f"build {objects[-1]}: {'cuda' if cuda else 'cxx'} {escape(ROOT / source)}\n  flags = {flags}\n"
            rule, flags = ("link_cuda", "") if cuda else ("link", "" if module else links)
            text += f"build {escape(target)}: {rule} {' '.join(objects)}\n  flags = {flags}\n"
        (folder / "build.ninja").write_text(text)
        jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
        if subprocess.run([Path(ninja.BIN_DIR) / "ninja", "-C", folder, *jobs], check=False).returncode:
            raise SystemExit("pointpeft could not be compiled: the messages above are the compiler's")
        self.drop_old_kernels()

    def copy_extensions_to_source(self):
        """Puts an editable build into the package."""
        self.drop_old_kernels()
        super().copy_extensions_to_source()

    def drop_old_kernels(self):
        """Deletes CUDA kernels of an older build where this one has none: they may not fit its operations."""
        if not find_nvcc():
            Path(self.get_ext_fullpath("pointpeft._cpu")).resolve().with_name("_cuda.so").unlink(missing_ok=True)


def fingerprint() -> str:
    """The fingerprint of csrc, by the function that an import compares it with; the package itself needs torch."""
    spec = importlib.util.spec_from_file_location("pointpeft_sources", ROOT / "pointpeft" / "_sources.py")
    if spec is None or spec.loader is None:
        raise SystemExit("pointpeft/_sources.py is missing from these sources")
    sources = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sources)
    return sources.fingerprint()


def only_packs_sources() -> bool:
    """Whether this run is for an sdist, which torch has no part in.

    setuptools asks setup.py in the same way what an sdist needs and what a wheel needs: only the arguments of the
    process, which hold the name of the build frontend's hook, tell the two apart.
    """
    return "sdist" in sys.argv or any("build_sdist" in argument for argument in sys.orig_argv)


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
    setup_requires=[] if find_torch() or only_packs_sources() else ["torch>=2.10"],
)
