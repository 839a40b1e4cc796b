"""Argument checks shared by the operations: each error names the argument, what it got and what it needs."""

import os
from typing import Any, TypeVar

import torch
from torch import Tensor

Weights = TypeVar("Weights", bound=tuple[Any, ...])

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def require_floating(name: str, tensor: Tensor, ndim: int, last: int | None = None) -> None:
    """`tensor` is floating, has `ndim` dimensions and `last` entries in its last one."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in FLOATING:
        raise ValueError(f"{name} must be float32, float64, float16 or bfloat16, got {tensor.dtype}")
    if tensor.dim() != ndim:
        raise ValueError(f"{name} must have {ndim} dimensions, got shape {tuple(tensor.shape)}")
    if last is not None and tensor.shape[-1] != last:
        raise ValueError(f"{name} must have {last} entries in its last dimension, got shape {tuple(tensor.shape)}")


def require_channels(name: str, tensor: Tensor) -> None:
    """`tensor` is floating and has a last dimension."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in FLOATING:
        raise ValueError(f"{name} must be float32, float64, float16 or bfloat16, got {tensor.dtype}")
    if tensor.dim() == 0 or tensor.shape[-1] == 0:
        raise ValueError(f"{name} must have channels in its last dimension, got shape {tuple(tensor.shape)}")


def num_rows(tensor: Tensor) -> int:
    """Rows of a weight matrix, 0 for what is none: `shaped` then says what is wrong."""
    return tensor.shape[0] if isinstance(tensor, Tensor) and tensor.dim() else 0


def require_number(name: str, value: float, bound: float, what: str) -> None:
    """`value` is a finite number, int or float, of at least `bound`; `what` says so."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not bound <= value < float("inf"):
        raise ValueError(f"{name} must be {what}, got {value!r}")


def require_count(name: str, value: int, bound: int, what: str) -> None:
    """`value` is an int in 1..most; `what` says what bounds it, such as "N"."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise ValueError(f"{name} must be an int, got {type(value).__name__}")
    if bound == 0:
        raise ValueError(f"{name} = {value} cannot be taken from {what} = 0")
    if not 1 <= value <= bound:
        raise ValueError(f"{name} must be between 1 and {what} = {bound}, got {value}")


def require_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """`tensor` has exactly `shape`."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")


def require_same_kind(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Both tensors have one device and dtype."""
    if tensor.device != other.device:
        raise ValueError(f"{name} is on {tensor.device}, but {other_name} is on {other.device}")
    if tensor.dtype != other.dtype:
        raise ValueError(f"{name} is {tensor.dtype}, but {other_name} is {other.dtype}")


def require_weights(name: str, value: Any, kind: type[Weights]) -> Weights:
    """`value` is a `kind`, one of the NamedTuples of weights; returns it."""
    if not isinstance(value, kind):
        raise ValueError(
            f"{name} must be {kind.__name__}({', '.join(kind.__annotations__)}), got {type(value).__name__}"
        )
    return value


def require_together(name: str, tensor: Tensor | None, other_name: str, other: Tensor | None) -> None:
    """Both tensors are given, or neither."""
    if (tensor is None) != (other is None):
        alone = other_name if tensor is None else name
        raise ValueError(f"{name} and {other_name} must be given together, got {alone} alone")


def looks_at_values(tensor: Tensor) -> bool:
    """Whether checks may read values: on the CPU always, on a GPU under POINTPEFT_CHECK=1, while tracing never.

    Nor under vmap, where a tensor has other values in each row.
    """
    if torch.compiler.is_compiling() or tensor.device.type == "meta" or is_fake(tensor):
        return False
    if torch._C._are_functorch_transforms_active() and not _is_concrete(tensor):
        return False
    return tensor.device.type == "cpu" or os.environ.get("POINTPEFT_CHECK") == "1"


def _is_concrete(tensor: Tensor) -> bool:
    """Whether no transform of torch.func that wraps `tensor` is a vmap."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return False
        tensor = functorch.get_unwrapped(tensor)
    return True


def is_fake(tensor: Tensor) -> bool:
    """Whether `tensor` is a stand-in without values, as in tracing."""
    return type(tensor) is not Tensor and isinstance(tensor, torch._subclasses.FakeTensor)


def require_finite(name: str, tensor: Tensor, lengths: Tensor | None = None) -> None:
    """No NaN and no infinity, where values may be looked at; padding behind `lengths` (B,) may hold anything."""
    if not looks_at_values(tensor):
        return
    good = torch.isfinite(tensor)
    if lengths is not None:
        good |= (torch.arange(tensor.shape[1], device=tensor.device) >= lengths[:, None])[..., None]
    if not bool(good.all()):
        bad = int((~good).sum())
        raise ValueError(f"{name} must be finite, got {bad} NaN or infinite values")


def require_lengths(tensor: Tensor | None, of: Tensor, of_name: str, bound: int, bound_name: str) -> Tensor | None:
    """Lengths as int64 on the device of `of` (B, N, …): integers (B,) with least <= length <= N.

    Returns:
        The lengths, or None for None.
    """
    if tensor is None:
        return None
    if not isinstance(tensor, Tensor) or tensor.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"lengths must be an int32 or int64 tensor, got {getattr(tensor, 'dtype', type(tensor).__name__)}"
        )
    if tensor.shape != of.shape[:1]:
        raise ValueError(f"lengths must have shape ({of.shape[0]},), one a cloud, got {tuple(tensor.shape)}")
    if tensor.device != of.device:
        raise ValueError(f"lengths is on {tensor.device}, but {of_name} is on {of.device}")
    if looks_at_values(tensor) and tensor.numel():
        low, high = int(tensor.min()), int(tensor.max())
        if low < bound or high > of.shape[1]:
            raise ValueError(
                f"lengths must be between {bound_name} = {bound} and N = {of.shape[1]}, got values from {low} to {high}"
            )
    return tensor.to(torch.int64).contiguous()
