"""Dropout from a counter: the mask follows from a seed and an element's index, so a backward recomputes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pointpeft.ops.core import triton_launch

if TYPE_CHECKING:
    import triton.language as tl


@triton_launch.device_function
def kept(seed, index, probability):
    """Kernel twin of `mask`: True where element `index` stays. `seed` points to an int64."""
    value = tl.load(seed)
    low = (value & 0xFFFFFFFF).to(tl.uint32)
    high = ((value >> 32) & 0xFFFFFFFF).to(tl.uint32)
    h = index.to(tl.uint32) * 0x9E3779B1 + low
    h = (h ^ (h >> 16)) * 0x85EBCA6B
    h = (h ^ (h >> 13)) * 0xC2B2AE35
    h = (h ^ (h >> 16)) + high
    h = (h ^ (h >> 16)) * 0x85EBCA6B
    h = (h ^ (h >> 13)) * 0xC2B2AE35
    h = h ^ (h >> 16)
    return (h >> 8).to(tl.float32) * (1.0 / 16777216.0) >= probability


def mask(seed: Tensor, count: int, probability: float) -> Tensor:
    """Which of `count` elements stay, each with 1 - probability: MurmurHash3's finaliser, twice, over counter and seed.

    Args:
        seed: int64, []
        count: How many elements.
        probability: Of an element to be dropped, in [0, 1).

    Returns:
        bool, [count]
    """
    h = torch.arange(count, device=seed.device) * 0x9E3779B1 + (seed & 0xFFFFFFFF) & 0xFFFFFFFF
    h = _mix(h) + ((seed >> 32) & 0xFFFFFFFF) & 0xFFFFFFFF
    return (_mix(h) >> 8).float() * 2.0**-24 >= probability


def _mix(h: Tensor) -> Tensor:
    h = (h ^ (h >> 16)) * 0x85EBCA6B & 0xFFFFFFFF  # the product wraps in int64, its low half is right
    h = (h ^ (h >> 13)) * 0xC2B2AE35 & 0xFFFFFFFF
    return h ^ (h >> 16)


def fresh_seed(device: torch.device) -> Tensor:
    """A seed from the device's default generator, without a synchronisation. int64, []"""
    return torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=device)
