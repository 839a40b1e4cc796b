"""Random cases of every CUDA operation, and what each must give: a file for each .cu file of csrc, by its name."""

import importlib
from collections.abc import Callable
from pathlib import Path

from tests.csrc.cases.draw import Case, Draw

OPERATIONS = tuple(
    sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in ("__init__", "draw"))
)


def makers(operation: str) -> tuple[Callable[[Draw], Case], ...]:
    """Functions that draw a case of a .cu file."""
    return importlib.import_module(f"tests.csrc.cases.{operation}").CASES
