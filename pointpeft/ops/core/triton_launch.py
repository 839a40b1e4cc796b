"""Triton kernels that are compiled when they are first launched: importing pointpeft imports no Triton."""

import importlib.util
import os
import threading
from collections.abc import Callable
from functools import cache, cached_property
from inspect import signature
from typing import Any

import torch

# Compiling replaces globals of the kernels' modules, and Triton's interpreter replaces its own: one thread at a time.
_LOCK = threading.RLock()

Config = tuple[dict[str, int], int, int]
"""Block sizes, warps, pipeline stages."""


@cache
def available() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether kernels run on CPU tensors, statement by statement: TRITON_INTERPRET=1."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def takes_first_config() -> bool:
    """Whether the first configuration that fits is taken, without timing any: POINTPEFT_AUTOTUNE=first."""
    wish = os.environ.get("POINTPEFT_AUTOTUNE", "time")
    if wish not in ("time", "first"):
        raise ValueError(f"POINTPEFT_AUTOTUNE must be time or first, got {wish!r}")
    return wish == "first"


class Kernel:
    """A kernel function that becomes a `triton.jit` function on first use.

    Which of its configurations is the fastest is measured once for each device, dtype, set of constants and `key`.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        configs: list[Config],
        key: list[str],
        suits: Callable[[dict[str, Any]], bool] | None = None,
    ):
        self.function = function
        self.configs = configs
        self.key = key
        self.suits = suits
        self.chosen: dict[tuple[Any, ...], dict[str, Any]] = {}
        """Block sizes, warps and stages by what they were chosen for."""

    @cached_property
    def jitted(self) -> Any:
        """The `triton.jit` function; lengths that only end loops and masks are not compiled in."""
        import triton

        _prepare(self.function.__globals__)
        return triton.jit(self.function, do_not_specialize=[n for n in LENGTHS if n in self.names])

    @cached_property
    def names(self) -> list[str]:
        """The names of the arguments."""
        return list(signature(self.function).parameters)

    def suitable(self, constants: dict[str, Any]) -> list[Config]:
        """The configurations that are meant for these constants."""
        if self.suits is None:
            return self.configs
        suitable = [config for config in self.configs if self.suits(constants | config[0] | {"warps": config[1]})]
        if not suitable:
            raise ValueError(f"no configuration of {self.function.__name__} suits {constants}")
        return suitable

    def launch(self, grid: Callable[[dict[str, Any]], tuple[int, ...]], *args: Any, **constants: Any) -> None:
        """Launches the kernel on the device of its first argument, a tensor, with the fastest configuration.

        In the interpreter, and under POINTPEFT_AUTOTUNE=first, the first configuration is taken that fits.
        """
        if interpreted():
            with _LOCK:
                constants |= self.suitable(constants)[0][0]
                self.jitted[grid(constants)](*args, **constants)
            return
        with torch.cuda.device_of(args[0]):
            numbers = (args[self.names.index(name)] for name in self.key)
            what = (args[0].get_device(), args[0].dtype, *constants.values(), *numbers)
            if what not in self.chosen:
                with _LOCK:
                    if what not in self.chosen:
                        choose = self._first_that_fits if takes_first_config() else self._fastest
                        self.chosen[what] = choose(grid, args, constants | OPTIONS)
                        return  # choosing has launched
            self.jitted[grid](*args, **constants, **OPTIONS, **self.chosen[what])

    def _fastest(self, grid: Any, args: tuple[Any, ...], constants: dict[str, Any]) -> dict[str, Any]:
        """Measures the configurations and launches the fastest; Triton leaves out those that do not fit."""
        import triton

        configs = [triton.Config(blocks, num_warps=w, num_stages=s) for blocks, w, s in self.suitable(constants)]
        key = [*self.key, *(name for name in constants if name in self.names)]
        # A tuner of its own: Triton's keeps the arguments of a call in itself.
        tuner = triton.autotune(configs, key, cache_results=True)(self.jitted)
        tuner[grid](*args, **constants)
        return tuner.best_config.all_kwargs()

    def _first_that_fits(self, grid: Any, args: tuple[Any, ...], constants: dict[str, Any]) -> dict[str, Any]:
        """Launches the first configuration whose resources the device has."""
        from triton.runtime.errors import OutOfResources

        configs = self.suitable(constants)
        for number, (blocks, warps, stages) in enumerate(configs, 1):
            chosen = {**blocks, "num_warps": warps, "num_stages": stages}
            try:
                self.jitted[grid](*args, **constants, **chosen)
                break
            except OutOfResources:
                if number == len(configs):
                    raise
        return chosen


OPTIONS = {"enable_fp_fusion": True}
"""Option of Triton's compiler: a product and a sum are fused with one rounding, as in all versions before 3.10."""

LENGTHS = ("T", "N", "bucket", "per_split", "num_groups", "num_blocks")
"""Arguments of kernels that change from call to call."""


def _prepare(names: dict[str, Any]) -> None:
    """Gives a module the language, and jits what its kernels call, before they themselves are jitted."""
    import triton
    import triton.language

    names["tl"] = triton.language
    if "INTERPRETED" in names:
        names["INTERPRETED"] = triton.language.constexpr(interpreted())
    for name, value in list(names.items()):
        if isinstance(value, Kernel) and not value.configs:
            names[name] = triton.jit(value.function)
            if value.function.__globals__ is not names:
                _prepare(value.function.__globals__)


def kernel(
    configs: list[Config], key: list[str], suits: Callable[[dict[str, Any]], bool] | None = None
) -> Callable[[Callable[..., Any]], Kernel]:
    """Decorator of a kernel.

    Args:
        configs: What is measured, each (block sizes, warps, pipeline stages).
        key: Arguments whose change asks for measuring again, as a change of a constant does.
        suits: Says of the constants, the block sizes and `warps` whether that configuration is meant for them; without
            it every one is. The first suitable configuration fits every GPU.
    """
    return lambda function: Kernel(function, configs, key, suits)


def device_function(function: Callable[..., Any]) -> Any:
    """Decorator of a function that kernels call; no type: the `Kernel` is none until it is jitted."""
    return Kernel(function, [], [])


def precision(dtype: torch.dtype) -> str:
    """How `tl.dot` multiplies: float32 in TF32 where cuBLAS may, else as three products of it; other types as such.

    Triton's exact float32 product unrolls multiplications over whole blocks, which then live in local memory: thousands
    of bytes a thread (sm_90). Three TF32 products are as exact within a few units in the last place, on tensor cores.
    """
    if dtype != torch.float32:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"


def power_of_two(value: int, smallest: int = 16) -> int:
    """The smallest power of two that is at least `value` and `smallest`; `tl.dot` takes no block below 16."""
    return max(smallest, 1 << (value - 1).bit_length())
