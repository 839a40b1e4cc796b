"""Augmentations of a batch on its device, seeded by a generator; and the normalisation of published data sets.

Every cloud draws its own numbers: its result depends on its place in the batch, but on no other cloud's content.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from pointpeft.data.dataset import AXES, require_axis

# A function of points [B, N, 3] and a generator on any device, giving points of the same shape, dtype and device.
Transform = Callable[[Tensor, Generator], Tensor]


def normalize(points: Tensor) -> Tensor:
    """Moves a cloud's mean to the origin and scales its farthest point to distance 1.

    Args:
        points: Coordinates, any float dtype. [..., N, 3]

    Returns:
        Points of the same shape and dtype; all zero where all points of a cloud coincide.

    Source: the reading code of ModelNet40 shared by PointNet++, Point-BERT and Point-MAE.
    """
    centred = points - points.mean(-2, keepdim=True)
    radius = centred.norm(dim=-1, keepdim=True).amax(-2, keepdim=True)
    return centred / radius.clamp_min(torch.finfo(points.dtype).tiny)


# A cloud whose coordinates are at most so many times its extent loses less than a millionth of it in float32.
_NEAR = 4


def normalize_precisely(points: Tensor) -> Tensor:
    """Normalises clouds as `normalize` does, in float64 where they lie far from the origin, as map coordinates do.

    Args:
        points: Coordinates as a file holds them, of any type. [..., N, 3]

    Returns:
        float32, of the same shape. Clouds near the origin are normalised in float32, as published code does.
    """
    near = points.to(torch.float32)
    result = normalize(near)
    far = _is_far(near)
    if bool(far.any()):
        result[far] = normalize(points[far].to(torch.float64)).to(torch.float32)
    return result


def move_to_origin(points: Tensor) -> Tensor:
    """Moves the mean of clouds to the origin, in float64, where they lie far from it, as map coordinates do.

    Args:
        points: Coordinates as a file holds them, of any type. [..., N, 3]

    Returns:
        float32, of the same shape. Clouds near the origin stay where they are, as published code takes them.
    """
    near = points.to(torch.float32)
    far = _is_far(near)
    if not bool(far.any()):
        return near
    precise = points[far].to(torch.float64)
    result = near.clone()
    result[far] = (precise - precise.mean(-2, keepdim=True)).to(torch.float32)
    return result


def _is_far(points: Tensor) -> Tensor:
    """Whether float32 would lose detail of a cloud, because it lies far from the origin. [..., N, 3] -> [...]"""
    extent = (points.amax(-2) - points.amin(-2)).amax(-1)
    return points.abs().amax((-2, -1)) > _NEAR * extent


def turn_y_up(points: Tensor, up_axis: str) -> Tensor:
    """Turns clouds by a quarter, so that the axis that points up becomes y, as in ShapeNet and ModelNet40.

    Args:
        points: Coordinates. [..., N, 3]
        up_axis: The axis that points up: "x", "y" or "z".
    """
    x, y, z = points.unbind(-1)
    turned = {"x": (-y, x, z), "z": (x, z, -y)}.get(require_axis(up_axis))
    return points if turned is None else torch.stack(turned, -1)


@dataclass(frozen=True)
class ScaleTranslate:
    """Scales and shifts every cloud, each axis by its own number.

    Args:
        scale: Bounds of the factors, drawn uniformly.
        shift: Largest shift to either side, drawn uniformly.

    Source: the fine-tuning code of Point-BERT and Point-MAE; the defaults are theirs.
    """

    scale: tuple[float, float] = (2 / 3, 3 / 2)
    shift: float = 0.2

    def __call__(self, points: Tensor, generator: Generator) -> Tensor:
        """Scales, then shifts. [B, N, 3]"""
        low, high = self.scale
        drawn = _uniform((2, len(points), 1, 3), points, generator)
        return points * (low + (high - low) * drawn[0]) + self.shift * (2 * drawn[1] - 1)


@dataclass(frozen=True)
class Isotropic:
    """Scales every cloud by one number and shifts each axis by its own.

    Args:
        scale: Bounds of the factor, drawn uniformly.
        shift: Largest shift to either side, drawn uniformly.

    Source: the part segmentation code of PointNet++ and Point-MAE; the defaults are theirs.
    """

    scale: tuple[float, float] = (0.8, 1.25)
    shift: float = 0.1

    def __call__(self, points: Tensor, generator: Generator) -> Tensor:
        """Scales, then shifts. [B, N, 3]"""
        low, high = self.scale
        factor = low + (high - low) * _uniform((len(points), 1, 1), points, generator)
        return points * factor + self.shift * (2 * _uniform((len(points), 1, 3), points, generator) - 1)


@dataclass(frozen=True)
class RotateUp:
    """Turns every cloud about the up axis by an angle of its own, uniform in [0, 2 pi).

    Args:
        axis: The axis that stays: "x", "y" or "z".

    Raises:
        DataError: No such axis.

    Source: the ScanObjectNN recipe of Point-MAE and ReCon, about "y".
    """

    axis: str = "y"

    def __post_init__(self) -> None:
        require_axis(self.axis)

    def __call__(self, points: Tensor, generator: Generator) -> Tensor:
        """Turns. [B, N, 3]"""
        angle = 2 * math.pi * _uniform((len(points), 1), points, generator)
        cos, sin = angle.cos(), angle.sin()
        up = AXES.index(self.axis)
        a, b = (up + 1) % 3, (up + 2) % 3  # right-handed: a turns towards b
        turned = points.clone()
        turned[..., a] = points[..., a] * cos - points[..., b] * sin
        turned[..., b] = points[..., a] * sin + points[..., b] * cos
        return turned


@dataclass(frozen=True)
class Jitter:
    """Moves every coordinate by clipped Gaussian noise.

    Args:
        sigma: Standard deviation before clipping.
        clip: Largest move along an axis.

    Source: PointNet; the defaults are its own.
    """

    sigma: float = 0.01
    clip: float = 0.05

    def __call__(self, points: Tensor, generator: Generator) -> Tensor:
        """Adds the noise. [B, N, 3]"""
        noise = torch.randn(points.shape, generator=generator, device=generator.device)
        return points + (self.sigma * noise).clamp_(-self.clip, self.clip).to(points.device, points.dtype)


@dataclass(frozen=True)
class PointDropout:
    """Moves a random share of every cloud's points onto its first point, which keeps the shape [B, N, 3].

    Args:
        most: Largest part dropped; a cloud's own part is uniform in [0, most).

    Source: PointNet++ and its successors, with `most` as in the Point-BERT family.
    """

    most: float = 0.5

    def __call__(self, points: Tensor, generator: Generator) -> Tensor:
        """Drops points. [B, N, 3]"""
        share = self.most * _uniform((len(points), 1), points, generator, torch.float32)
        dropped = _uniform(points.shape[:2], points, generator, torch.float32) < share
        return torch.where(dropped[..., None], points[:, :1], points)


class Compose:
    """Applies transforms one after another.

    Args:
        transforms: The first is applied first; none leaves the points as they are.
    """

    def __init__(self, *transforms: Transform) -> None:
        self.transforms = transforms

    def __call__(self, points: Tensor, generator: Generator) -> Tensor:
        """Applies all. [B, N, 3]"""
        for transform in self.transforms:
            points = transform(points, generator)
        return points

    def __repr__(self) -> str:
        return f"Compose({', '.join(map(repr, self.transforms))})"


_NAMED: dict[str, Callable[[str], Transform]] = {
    "none": lambda up_axis: Compose(),
    "scale_translate": lambda up_axis: ScaleTranslate(),
    "isotropic": lambda up_axis: Isotropic(),
    "rotate": RotateUp,
    # The recipe of Point-PEFT for ScanObjectNN.
    "scale_rotate": lambda up_axis: Compose(ScaleTranslate((0.9, 1.1), 0.0), RotateUp(up_axis)),
    "jitter": lambda up_axis: Jitter(),
    "dropout": lambda up_axis: PointDropout(),
}


def named(name: str, up_axis: str) -> Transform:
    """An augmentation by its name on the command line.

    Args:
        name: "none", "scale_translate", "isotropic", "rotate", "scale_rotate", "jitter" or "dropout"; several joined by
            "+" are applied in order.
        up_axis: The axis that "rotate" keeps.

    Raises:
        ValueError: An unknown name or axis.
    """
    unknown = [word for word in name.split("+") if word not in _NAMED]
    if unknown:
        raise ValueError(f"augmentation must be among {', '.join(_NAMED)} (joined by +), got {name!r}")
    require_axis(up_axis)
    transforms = [_NAMED[word](up_axis) for word in name.split("+")]
    return transforms[0] if len(transforms) == 1 else Compose(*transforms)


def _uniform(
    shape: tuple[int, ...] | torch.Size, points: Tensor, generator: Generator, dtype: torch.dtype | None = None
) -> Tensor:
    """Numbers in [0, 1), drawn where the generator lives: one seed gives one result for all dtypes."""
    drawn = torch.rand(shape, generator=generator, device=generator.device)
    return drawn.to(points.device, dtype or points.dtype)
