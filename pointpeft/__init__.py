"""Parameter-efficient fine-tuning of point-cloud transformers, with fused point and adapter operations."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Public name -> module that holds it. Imported on first use, so that `import pointpeft` and the command line stay fast.
_LAZY: dict[str, str] = {
    "PointModel": "pointpeft.model",
    "create_model": "pointpeft.model",
    "from_published": "pointpeft.checkpoints",
    "load_adapter": "pointpeft.checkpoints",
    "save_adapter": "pointpeft.checkpoints",
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'pointpeft' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
