"""Pre-training, adaptation, evaluation and the folder a run leaves behind."""

from importlib import import_module
from typing import Any

# Public name -> module that holds it: the configurations import no torch, so that the command line answers at once.
_LAZY = {
    "EvaluateConfig": "pointpeft.training.config",
    "FewShotConfig": "pointpeft.training.config",
    "FinetuneConfig": "pointpeft.training.config",
    "PretrainConfig": "pointpeft.training.config",
    "evaluate": "pointpeft.training.evaluation",
    "few_shot": "pointpeft.training.folds",
    "find_preset": "pointpeft.training.presets",
    "finetune": "pointpeft.training.finetuning",
    "predict": "pointpeft.training.evaluation",
    "pretrain": "pointpeft.training.pretraining",
    "read_recipe": "pointpeft.training.published_recipe",
}

__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'pointpeft.training' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
