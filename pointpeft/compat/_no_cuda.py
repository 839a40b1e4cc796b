"""Scripts written for CUDA alone, on a machine without: what they send to a GPU stays on the CPU."""

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")
# Of `torch.cuda`, what training scripts call and what a machine without CUDA can answer truthfully: nothing to wait
# for, nothing allocated. The rest fails as ever.
SILENT = {
    "set_device": lambda device: None,
    "synchronize": lambda device=None: None,
    "empty_cache": lambda: None,
    "reset_peak_memory_stats": lambda device=None: None,
    "memory_allocated": lambda device=None: 0,
    "max_memory_allocated": lambda device=None: 0,
}
TENSORS = ("FloatTensor", "DoubleTensor", "HalfTensor", "LongTensor", "IntTensor", "BoolTensor", "ByteTensor")


def stay_on_cpu() -> None:
    """Keeps on the CPU, from now on and in this thread, what is sent to CUDA.

    `.cuda()`, `.to("cuda:0")`, `.to(0)` and `device="cuda"` give CPU tensors and modules, `torch.load` maps to the CPU,
    and `torch.cuda.FloatTensor` and its kin are CPU types. `torch.cuda.is_available()` stays False.

    Raises:
        ValueError: There is a CUDA device.
    """
    global _active
    if torch.cuda.is_available():
        raise ValueError("stay_on_cpu() is for machines without CUDA; this one has a CUDA device")
    if _active is not None:
        return
    _active = _OnCPU()
    _active.__enter__()
    torch.nn.Module.cuda = lambda self, device=None: self  # type: ignore[method-assign]
    torch.nn.Module.to = _module_to(torch.nn.Module.to)  # type: ignore[method-assign]
    torch.load = _load(torch.load)
    for name, answer in SILENT.items():
        setattr(torch.cuda, name, answer)
    for name in TENSORS:
        setattr(torch.cuda, name, getattr(torch, name))


class _OnCPU(TorchFunctionMode):
    """Replaces CUDA devices in the arguments of every torch function, and `Tensor.cuda` by nothing."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.cuda:
            return args[0]
        if kwargs.get("device") is not None:
            kwargs["device"] = _here(kwargs["device"])
        if func is torch.Tensor.to and len(args) > 1:
            args = (args[0], _here(args[1]), *args[2:])
        return func(*args, **kwargs)


_active: _OnCPU | None = None


def _here(device: Any) -> Any:
    """The CPU where a CUDA device is meant, which a bare number means too; anything else unchanged."""
    if isinstance(device, int) and not isinstance(device, bool):
        return CPU
    if isinstance(device, str) and device.partition(":")[0] == "cuda":
        return CPU
    return CPU if isinstance(device, torch.device) and device.type == "cuda" else device


def _module_to(to: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(self: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        if "device" in kwargs:
            kwargs["device"] = _here(kwargs["device"])
        return to(self, *(_here(argument) for argument in args[:1]), *args[1:], **kwargs)

    return wrapped


def _load(load: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(f: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
        return load(f, CPU if map_location is None else _located(map_location), *args, **kwargs)

    return wrapped


def _located(map_location: Any) -> Any:
    if isinstance(map_location, dict):
        return {source: str(_here(target)) for source, target in map_location.items()}
    return _here(map_location)
