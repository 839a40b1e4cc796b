"""Versions and hardware behind a result."""

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

PACKAGES = ("numpy", "accelerate", "torchmetrics", "safetensors")


def versions() -> dict[str, str]:
    """Versions of this package, Python, torch and other packages that influence results, and the processor or GPU."""
    from pointpeft import __version__
    from pointpeft.ops import backend

    installed = {"pointpeft": __version__, "python": platform.python_version(), "torch": torch.__version__}
    for package in PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            installed[package] = "missing"
    cuda = torch.cuda.is_available()
    installed["device"] = (
        torch.cuda.get_device_name() if cuda else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    installed["operations"] = backend("cuda" if cuda else "cpu")
    return installed
