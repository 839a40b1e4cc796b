"""Old repositories run unmodified: drop-in modules under the names that they import.

    import pointpeft.compat
    pointpeft.compat.install()

or, from the shell, `python -m pointpeft.compat train.py --its arguments`. Provided are `pointnet2_ops`, `knn_cuda`,
`chamfer_dist` and `emd` (also below `extensions`), `pytorch3d.ops`, `torch_cluster`, `torch_scatter` and `pointops`
(Pointcept's, and Point Transformer's below `lib`), with their signatures, index dtypes, padding and tie rules, on the
CPU and CUDA. Without a CUDA device the command also keeps on the CPU what a
script sends to one: `.cuda()`, `.to(0)`, `device="cuda"`; in your own program, `pointpeft.compat.stay_on_cpu()` does.
"""

import importlib
import importlib.util
import sys
import types

from pointpeft.compat._no_cuda import stay_on_cpu

__all__ = ["MODULES", "install", "is_installed", "is_ours", "stay_on_cpu"]

# Name that an old repository imports -> our module that answers.
MODULES = {
    "pointnet2_ops.pointnet2_utils": "pointpeft.compat.pointnet2_utils",
    "pointnet2_ops.pointnet2_modules": "pointpeft.compat.pointnet2_modules",
    "knn_cuda": "pointpeft.compat.knn_cuda",
    "chamfer_dist": "pointpeft.compat.chamfer_dist",
    "extensions.chamfer_dist": "pointpeft.compat.chamfer_dist",
    "emd": "pointpeft.compat.emd",
    "emd_module": "pointpeft.compat.emd",
    "extensions.emd": "pointpeft.compat.emd",
    "pytorch3d.ops": "pointpeft.compat.pytorch3d_ops",
    "torch_cluster": "pointpeft.compat.torch_cluster",
    "torch_scatter": "pointpeft.compat.torch_scatter",
    "pointops": "pointpeft.compat.pointops",
    "lib.pointops.functions.pointops": "pointpeft.compat.pointops",
}
# Folders of the old repositories themselves, not packages: ours join them, and replace the source that needs a build.
SHARED = ("extensions", "lib")


def install(*names: str, replace: bool = False) -> list[str]:
    """Registers the drop-in modules, so that later imports of those names find ours.

    Args:
        names: Which of `MODULES` to provide; none for all.
        replace: Also where a package of that name is installed; otherwise an installed one stays.

    Returns:
        The names that ours now answer.

    Raises:
        ValueError: A name that is not in `MODULES`.
    """
    unknown = sorted(set(names) - set(MODULES))
    if unknown:
        raise ValueError(f"names must be among {sorted(MODULES)}, got {unknown}")
    provided = [name for name in names or MODULES if replace or is_ours(name) or not is_installed(name)]
    for name in provided:
        sys.modules[name] = importlib.import_module(MODULES[name])
    # After all of them: an installed package that is replaced may import them itself, to build what ours need not.
    for name in provided:
        parent, _, leaf = name.rpartition(".")
        if parent:
            setattr(_package(parent), leaf, sys.modules[name])
    return provided


def is_ours(name: str) -> bool:
    """Whether the module that answers to `name` is ours."""
    module = sys.modules.get(name)
    return module is not None and module.__name__ == MODULES[name]


def is_installed(name: str) -> bool:
    """Whether a package of that name is installed or imported, which is not ours."""
    root = name.partition(".")[0]
    if root in SHARED or is_ours(name):
        return False
    if root in sys.modules:
        return not hasattr(sys.modules[root], "__pointpeft__")
    return importlib.util.find_spec(root) is not None


def _package(name: str) -> types.ModuleType:
    """The package that holds a dotted name: the one there is, or an empty one that we make."""
    parent, _, leaf = name.rpartition(".")
    holder = _package(parent) if parent else None
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        package = types.ModuleType(name, "Made by pointpeft.compat.")
        package.__path__ = []
        vars(package)["__pointpeft__"] = True
        sys.modules[name] = package
        if holder is not None:
            setattr(holder, leaf, package)
    return importlib.import_module(name)
