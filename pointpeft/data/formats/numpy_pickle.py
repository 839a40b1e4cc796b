"""Unpickling that gives arrays of numbers in plain containers, and nothing else.

A pickle names functions to call while it is read, so a downloaded one can run anything. Here the names that rebuild a
NumPy array stand for code of this file, and every other is refused. NumPy's own functions are not called: its types
take over a state from the pickle unchecked, and a forged one makes it follow pointers that the file invents.
"""

import math
import os
import pickle
import pickletools
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from pointpeft.data.dataset import DataError
from pointpeft.data.formats.bounds import NUMBER_BYTES, brief, require_unpacked

_MAX_DIMS = 64  # of an array, as in NumPy


class _Kind:
    """Stands for `numpy.dtype`: a kind of number and its byte order."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        dtype = np.dtype(code) if isinstance(code, str) else None
        if dtype is None or dtype.kind not in "fiub":
            raise DataError(f"refused: it holds an array of {code!r}, not of numbers")
        self.dtype = dtype

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for `numpy.ndarray` and its `_reconstruct`: empty at first, filled by its state."""

    def __init__(self, *ignored: Any) -> None:
        self.values = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, content = state
        self.values = _values(content, dtype, shape, "F" if fortran else "C")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype=dtype)


def _values(content: Any, dtype: Any, shape: Any, order: Literal["F", "C"]) -> np.ndarray:
    if not isinstance(dtype, _Kind) or not isinstance(content, bytes | bytearray):
        raise DataError("refused: it holds an array that is not one of numbers")
    if not isinstance(shape, tuple) or len(shape) > _MAX_DIMS:
        raise DataError(f"is damaged: the shape of an array must be at most {_MAX_DIMS} numbers, got {brief(shape)}")
    sizes = tuple(int(size) for size in shape)
    if math.prod(sizes) * dtype.dtype.itemsize != len(content):
        raise DataError(f"is damaged: an array of {dtype.dtype} {list(sizes)} has {len(content)} bytes")
    return np.frombuffer(content, dtype.dtype).reshape(sizes, order=order)


def _from_buffer(content: Any, dtype: Any, shape: Any, order: str, *ignored: Any) -> _Array:
    """Stands for `_frombuffer`, which protocol 5 uses."""
    array = _Array()
    array.values = _values(content, dtype, shape, "F" if order == "F" else "C")
    return array


def _scalar(dtype: Any, content: Any) -> Any:
    return _values(content, dtype, (), "C")[()]


_STANDS_FOR: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Kind,
}
for _core in ("numpy.core", "numpy._core"):  # as NumPy 1 and NumPy 2 write it
    _STANDS_FOR[_core + ".multiarray", "_reconstruct"] = _Array
    _STANDS_FOR[_core + ".multiarray", "scalar"] = _scalar
    _STANDS_FOR[_core + ".numeric", "_frombuffer"] = _from_buffer


class _Unpickler(pickle.Unpickler):
    """Bounds what the calls of a pickle copy, too: each call may name the same object of the file once more."""

    def __init__(self, file: BinaryIO, stored: int) -> None:
        super().__init__(file)
        self._stored = stored
        self._copied = 0
        self._copying = {
            (module, name): call
            for module in ("builtins", "__builtin__")
            for name, call in (("list", self._list), ("tuple", self._tuple), ("int", self._int))
        } | {("_codecs", "encode"): self._bytes}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._copying:
            return self._copying[module, name]
        if (module, name) not in _STANDS_FOR:
            raise DataError(f"refused: it asks for {module}.{name}, which an array of numbers does not need")
        return _STANDS_FOR[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise DataError("refused: it refers to objects outside the file")

    def _count(self, size: int) -> None:
        self._copied += size
        require_unpacked(self._stored, self._copied)

    def _list(self, items: Any = ()) -> list[Any]:
        self._count(NUMBER_BYTES * len(items))
        return list(items)

    def _tuple(self, items: Any = ()) -> tuple[Any, ...]:
        self._count(NUMBER_BYTES * len(items))
        return tuple(items)

    def _int(self, value: Any = 0) -> int:
        if not isinstance(value, int | float):
            raise DataError("refused: it makes a number of something else, which an array of numbers does not need")
        return int(value)

    def _bytes(self, text: Any, encoding: Any) -> bytes:
        """Stands for `_codecs.encode`, by which Python 3 writes bytes in protocols 0 to 2."""
        if not isinstance(text, str) or encoding != "latin1":
            raise DataError("refused: it asks for an encoding that an array of numbers does not need")
        self._count(len(text))
        return text.encode("latin1")


def _check_memo(file: BinaryIO, size: int) -> None:
    """Raises where an object is given a number that no file of `size` bytes has: pickle takes memory for all below."""
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(argument or 0) <= size:
            raise DataError(f"is damaged: object number {argument} in {size} bytes")


def load_arrays(path: Path) -> Any:
    """Reads a pickle of arrays.

    Returns:
        Its lists, tuples and numbers; for an array, what `numpy.asarray` turns into that array.

    Raises:
        DataError: It is missing, broken, or asks for anything but arrays and plain containers; names the file.
    """
    if not os.path.isfile(path):
        raise DataError(f"{path}: no such file")
    try:
        with open(path, "rb") as file:
            size = path.stat().st_size
            _check_memo(file, size)
            file.seek(0)
            return _Unpickler(file, size).load()
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # a broken pickle raises nearly anything
        raise DataError(f"{path}: cannot be read: {error or type(error).__name__}") from error
