"""Unpickling that admits arrays of numbers in plain containers, and nothing else.

A pickle names functions to call while it is read, so a downloaded one can run anything. Here every name is refused but
those that rebuild NumPy arrays; lists, tuples, numbers and strings need no name.
"""

import builtins
import importlib
import pickle
from pathlib import Path
from typing import Any

from pointpeft.data.dataset import DataError

_ADMITTED = {
    # NumPy 2 moved its core; files carry the name of the version that wrote them.
    ("numpy.core.multiarray", "_reconstruct"): "numpy._core.multiarray",
    ("numpy._core.multiarray", "_reconstruct"): "numpy._core.multiarray",
    ("numpy.core.multiarray", "scalar"): "numpy._core.multiarray",
    ("numpy._core.multiarray", "scalar"): "numpy._core.multiarray",
    ("numpy.core.numeric", "_frombuffer"): "numpy._core.numeric",
    ("numpy._core.numeric", "_frombuffer"): "numpy._core.numeric",
    ("numpy", "ndarray"): "numpy",
    ("numpy", "dtype"): "numpy",
}
_PLAIN = ("list", "tuple", "int")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in ("builtins", "__builtin__") and name in _PLAIN:
            return getattr(builtins, name)
        home = _ADMITTED.get((module, name))
        if home is None:
            raise DataError(f"refused: it asks for {module}.{name}, which an array of numbers does not need")
        try:
            return getattr(importlib.import_module(home), name)
        except ModuleNotFoundError:  # NumPy 1
            return getattr(importlib.import_module(home.replace("_core", "core")), name)

    def persistent_load(self, pid: Any) -> Any:
        raise DataError("refused: it refers to objects outside the file")


def load_arrays(path: Path) -> Any:
    """Reads a pickle of arrays.

    Raises:
        DataError: It is missing, broken, or asks for anything but arrays and plain containers; names the file.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        with open(path, "rb") as file:
            return _Unpickler(file).load()
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # a broken pickle raises nearly anything
        raise DataError(f"{path}: cannot be read: {error or type(error).__name__}") from error
