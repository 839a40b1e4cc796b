"""Parameter-efficient fine-tuning of point-cloud transformers, with fused point and adapter operations."""

from importlib import import_module
from typing import Any

from pointpeft import _sources

_sources.give_way()

__version__ = "0.1.0"

# Everything below is imported on first use, so that `import pointpeft` and the command line stay fast.
_FUNCTIONS: dict[str, str] = {
    "PointModel": "pointpeft.model",
    "create_model": "pointpeft.create",
    "evaluate": "pointpeft.runs.evaluate",
    "finetune": "pointpeft.runs.finetune",
    "from_pretrained": "pointpeft.checkpoints.hub",
    "from_published": "pointpeft.checkpoints",
    "load_adapter": "pointpeft.checkpoints",
    "load_dataset": "pointpeft.data",
    "predict": "pointpeft.runs.evaluate",
    "pretrain": "pointpeft.runs.pretrain",
    "push_to_hub": "pointpeft.checkpoints.hub",
    "save_adapter": "pointpeft.checkpoints",
}
_PACKAGES = (
    "backbones",
    "checkpoints",
    "compat",
    "create",
    "data",
    "drawing",
    "escapes",
    "files",
    "heads",
    "locks",
    "methods",
    "model",
    "ops",
    "progress",
    "recipes",
    "runs",
    "tasks",
    "training",
    "view",
    "weights",
)

__all__ = ["__version__", *_FUNCTIONS, *_PACKAGES]


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return getattr(import_module(_FUNCTIONS[name]), name)
    if name in _PACKAGES:
        return import_module(f"pointpeft.{name}")
    raise AttributeError(f"module 'pointpeft' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
