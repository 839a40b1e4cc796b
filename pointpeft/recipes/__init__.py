"""Published training recipes, as named presets and as the YAML files of published repositories."""

from importlib import import_module
from typing import Any

# Public name -> module that holds it: reading a name imports nothing heavy.
_LAZY = {
    "find_preset": "pointpeft.recipes.presets",
    "read_recipe": "pointpeft.recipes.published_yaml",
}

__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'pointpeft.recipes' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
