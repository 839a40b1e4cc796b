"""Functions that several Triton kernels call: NaN passes through all of them, as through PyTorch's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pointpeft.ops.core import triton_launch

if TYPE_CHECKING:
    import triton.language as tl

INTERPRETED = False  # a constant of Triton's from when the kernels are jitted on


@triton_launch.device_function
def relu(x):
    """max(x, 0), NaN where x is."""
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton_launch.device_function
def gelu(x):
    """GELU, exact."""
    return x * (0.5 * (1.0 + tl.erf(x * 0.7071067811865476)))


@triton_launch.device_function
def gelu_slope(x):
    """The derivative of GELU."""
    return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * tl.exp(-0.5 * x * x) * 0.3989422804014327


@triton_launch.device_function
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton_launch.device_function
def max_over(x, AXIS: tl.constexpr):
    """The maximum along an axis, NaN where one of its elements is; `tl.max` passes NaN over."""
    if INTERPRETED:  # there a reduction by a function takes milliseconds for a hundred elements
        return tl.where(tl.sum((x != x).to(tl.int32), AXIS) > 0, float("nan"), tl.max(x, AXIS))
    else:
        return tl.reduce(x, AXIS, _larger)
