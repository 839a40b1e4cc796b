"""Triton kernels that are compiled when they are first launched: importing pointpeft imports no Triton."""

import importlib.util
import os
from collections.abc import Callable
from functools import cache, cached_property
from typing import Any

import torch


@cache
def available() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether kernels run on CPU tensors, statement by statement: TRITON_INTERPRET=1."""
    return os.environ.get("TRITON_INTERPRET") == "1"


class Kernel:
    """A kernel function that becomes a `triton.jit` function, autotuned over `configs`, on first use."""

    def __init__(self, function: Callable[..., Any], configs: list[tuple[dict[str, int], int, int]], key: list[str]):
        self.function = function
        self.configs = configs
        self.key = key

    @cached_property
    def jitted(self) -> Any:
        """The `triton.jit` function."""
        import triton

        _prepare(self.function.__globals__)
        return triton.jit(self.function)

    @cached_property
    def _tuned(self) -> Any:
        import triton

        configs = [triton.Config(values, num_warps=warps, num_stages=stages) for values, warps, stages in self.configs]
        return triton.autotune(configs, self.key, cache_results=True)(self.jitted)

    def launch(self, grid: Callable[[dict[str, Any]], tuple[int, ...]], *args: Any, **constants: Any) -> None:
        """Launches the kernel with the fastest of its configurations (the first one in the interpreter)."""
        if interpreted():
            constants = constants | self.configs[0][0]
            self.jitted[grid(constants)](*args, **constants)
            return
        self._tuned[grid](*args, **constants)


def _prepare(names: dict[str, Any]) -> None:
    """Gives a module the language, and jits what its kernels call, before they themselves are jitted."""
    import triton
    import triton.language

    names["tl"] = triton.language
    for name, value in list(names.items()):
        if isinstance(value, Kernel) and not value.configs:
            names[name] = triton.jit(value.function)
            if value.function.__globals__ is not names:
                _prepare(value.function.__globals__)


def kernel(configs: list[tuple[dict[str, int], int, int]], key: list[str]) -> Callable[[Callable[..., Any]], Kernel]:
    """Decorator of a kernel.

    Args:
        configs: What autotuning tries, each (block sizes, warps, pipeline stages); the interpreter takes the first.
        key: Arguments whose change asks for tuning again.
    """
    return lambda function: Kernel(function, configs, key)


def device_function(function: Callable[..., Any]) -> Any:
    """Decorator of a function that kernels call; no type: the `Kernel` is none until it is jitted."""
    return Kernel(function, [], [])


def precision(dtype: torch.dtype) -> str:
    """How `tl.dot` multiplies: float32 as cuBLAS is allowed to, other types in their own precision."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"


def power_of_two(value: int, least: int = 16) -> int:
    """The smallest power of two that is at least `value` and `least`; `tl.dot` takes no block below 16."""
    return max(least, 1 << (value - 1).bit_length())
