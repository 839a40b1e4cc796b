"""Adaptation methods, by name: each is a frozen dataclass of its options that attaches itself to a model.

Every file of this folder and its folders is imported, so that a new one registers its method by standing there. The
class of each registered method is an attribute of this package: `from pointpeft.methods import DAPT`.
"""

from importlib import import_module
from pkgutil import walk_packages
from typing import Any

from pointpeft.methods.base import (
    Method,
    TrainingClouds,
    create_method,
    method_class,
    method_names,
    register_method,
)
from pointpeft.methods.prompts.memory_bank import build_memory_bank, load_memory_bank, set_memory_bank
from pointpeft.methods.token_map import CallReader, TokenMap


def import_every_file() -> None:
    """Imports each file of this folder and its folders, which registers the methods in them.

    Those whose names begin with an underscore may need an optional package, and are left to the file that imports them.
    """
    for module in walk_packages(__path__, f"{__name__}."):
        if not module.name.rpartition(".")[2].startswith("_"):
            import_module(module.name)


import_every_file()


def _classes() -> dict[str, type[Method]]:
    classes = [method_class(name) for name in method_names()]
    return {cls.__name__: cls for cls in classes}


__all__ = [
    "CallReader",
    "Method",
    "TokenMap",
    "TrainingClouds",
    "build_memory_bank",
    "create_method",
    "load_memory_bank",
    "method_class",
    "method_names",
    "register_method",
    "set_memory_bank",
]
__all__ += list(_classes())  # not a list of names, so that a new file is all that a method needs


def __getattr__(name: str) -> Any:
    classes = _classes()
    if name in classes:
        return classes[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_classes()})
