"""Which package an import gets in a checkout, and whether its libraries belong to its sources.

setup.py reads this file too, so that it imports the standard library alone.
"""

import hashlib
import importlib.util
import os
import sys
import warnings
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = PACKAGE.parent
CSRC = CHECKOUT / "csrc"


def fingerprint(csrc: Path = CSRC) -> str:
    """The SHA-256 of all files of `csrc`, which a build compiles into its libraries."""
    digest = hashlib.sha256()
    for path in sorted(csrc.rglob("*")):
        if path.suffix in (".cpp", ".cu", ".cuh", ".h"):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(csrc).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def is_checkout() -> bool:
    """Whether this package lies beside its sources; an installed one does not."""
    return CSRC.is_dir() and (CHECKOUT / "setup.py").is_file()


def build_command() -> str:
    """The command that builds this package's own libraries."""
    if is_checkout():
        return f"type `pip install -e .` in {CHECKOUT}"
    return "install again with a C++ compiler (and nvcc for CUDA) on PATH"


def find_installed() -> ModuleSpec | None:
    """Another pointpeft with compiled libraries that an import outside this checkout would get."""
    finders = [finder for finder in sys.meta_path if finder is not PathFinder]
    specs = [PathFinder.find_spec("pointpeft", [entry]) for entry in sys.path]
    specs += [finder.find_spec("pointpeft", None) for finder in finders if hasattr(finder, "find_spec")]
    for spec in specs:
        if spec is not None and spec.origin is not None and spec.has_location:
            folder = Path(spec.origin).resolve().parent
            if folder != PACKAGE and (folder / "_cpu.so").is_file():
                return spec
    return None


def give_way() -> bool:
    """Imports an installed package instead of a checkout that was never built, and reports it.

    Returns:
        Whether it did: `sys.modules` then holds the installed package.
    """
    if (PACKAGE / "_cpu.so").is_file() or not is_checkout() or os.environ.get("POINTPEFT_BACKEND") == "reference":
        return False
    spec = find_installed()
    if spec is None or spec.loader is None or spec.origin is None:
        return False
    warnings.warn(
        f"the checkout {CHECKOUT} has no compiled operations and shadows the installed pointpeft, so "
        f"{Path(spec.origin).parent} is imported instead; to import the checkout, {build_command()}",
        RuntimeWarning,
        stacklevel=3,
    )
    module = importlib.util.module_from_spec(spec)
    for name in [name for name in sys.modules if name.startswith("pointpeft.")]:
        del sys.modules[name]
    sys.modules["pointpeft"] = module
    spec.loader.exec_module(module)
    return True
