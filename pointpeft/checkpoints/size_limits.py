"""Bounds on the size of a model that an untrusted file describes: no larger than the files with its weights."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook as watch_modules
from torch.nn.modules.module import register_module_parameter_registration_hook as watch_parameters
from torch.utils._python_dispatch import TorchDispatchMode

MAX_NUMBER = 1 << 20  # of any option of a model
MAX_CLASSES = 10_000
_MAX_MODULES = 20_000
_FREE = 1 << 24  # numbers that a model may hold whatever its files are
_GROWTH = 4  # numbers that are fresh or shared, to each one in the files
_MAKES_A_MATRIX = ("aten::eye", "aten::eye.m", "aten::outer", "aten::tri", "aten::kron")


def require_small_numbers(value: Any, name: str) -> None:
    """Refuses options with implausibly large numbers.

    Raises:
        ValueError: Names the option.
    """
    if isinstance(value, dict):
        for key, inner in value.items():
            require_small_numbers(inner, f"{name}.{key}")
    elif isinstance(value, list):
        for inner in value:
            require_small_numbers(inner, name)
    elif isinstance(value, int) and not name.endswith("seed") and abs(value) > MAX_NUMBER:
        raise ValueError(f"{name} must be at most {MAX_NUMBER}, got {_brief(value)}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")


@contextmanager
def bounded_by_files(stored: int) -> Iterator[None]:
    """Refuses to make a model that is larger than its files of `stored` bytes together, before it takes memory.

    Every parameter of a model that was saved is in one of its files, so that it cannot have many more numbers.

    Raises:
        ValueError: It has more numbers than the files hold, or too many modules.
    """
    limit = max(_FREE, _GROWTH * stored)
    numbers = modules = 0

    def count_parameter(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal numbers
        numbers += 0 if parameter is None else parameter.numel()
        _require(numbers, limit, stored)

    def count_module(module: nn.Module, name: str, inner: nn.Module | None) -> None:
        nonlocal modules
        modules += 1
        if modules > _MAX_MODULES:
            raise ValueError(f"it describes a model of more than {_MAX_MODULES} modules")

    hooks = (watch_parameters(count_parameter), watch_modules(count_module))
    try:
        with _SmallTensors(limit, stored):
            yield
    finally:
        for hook in hooks:
            hook.remove()


class _SmallTensors(TorchDispatchMode):
    """Checks the sizes of an operation's arguments before it allocates memory."""

    def __init__(self, limit: int, stored: int) -> None:
        super().__init__()
        self._limit, self._stored = limit, stored

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        for value in (*args, *(kwargs or {}).values()):
            if isinstance(value, (list, tuple)) and value and all(isinstance(size, int) for size in value):
                _require(math.prod(size for size in value if size > 0), self._limit, self._stored)
        if func.name() in _MAKES_A_MATRIX:
            sizes = [arg.numel() if isinstance(arg, Tensor) else arg for arg in args]
            _require(math.prod(sizes) ** (1 if len(sizes) > 1 else 2), self._limit, self._stored)
        return func(*args, **(kwargs or {}))


def _brief(value: int) -> str:
    return str(value) if abs(value) < 10**18 else f"a number of {value.bit_length()} bits"


def _require(numbers: int, limit: int, stored: int) -> None:
    if numbers > limit:
        raise ValueError(f"it describes a model of at least {numbers:.3g} numbers, its files have {stored} bytes")
