"""Stand-ins for packages that are not installed, so that a model can be built where only its operations are needed.

`pointpeft.create` imports readers of weight files and of settings. A model with fresh weights calls none of them: the
names are there, and a call raises an error that names what is missing.
"""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGES = ("accelerate", "h5py", "safetensors", "torchmetrics", "tqdm", "tyro", "yaml")


class _Finder:
    """Finds the missing packages and all modules inside them."""

    def __init__(self, names: set[str]):
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in self.names else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Module(ModuleType):
    """Any name in it is a class that cannot be called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        package = self.__name__.partition(".")[0]

        def refuse(*arguments: Any, **options: Any) -> None:
            raise ImportError(f"{self.__name__}.{name} is called, but {package} is not installed")

        return type(name, (Exception,), {"__new__": refuse})


def stand_in() -> list[str]:
    """Replaces the `PACKAGES` that are not installed by stand-ins; returns their names."""
    missing = {name for name in PACKAGES if not _is_installed(name)}
    if missing:
        for name in missing:
            sys.modules.pop(name, None)  # None is there where an import was refused on purpose
        sys.meta_path.insert(0, _Finder(missing))
    return sorted(missing)


def _is_installed(name: str) -> bool:
    if name in sys.modules:
        return sys.modules[name] is not None
    return importlib.util.find_spec(name) is not None
