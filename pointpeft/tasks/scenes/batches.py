"""Scenes cut into columns: at random for training, by a sliding window for testing."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pointpeft.data.segments import SceneDataset
from pointpeft.tasks.parts.batches import random_order
from pointpeft.training.processes import require_clouds, share

COLUMN_SIDE = 1.0  # metres; all of these are the published values
STRIDE = 0.5
PADDING = 0.001
LEAST = 1025  # points of a training column
TRIES = 50  # draws of a column before the fullest of them is taken, in scenes too sparse for LEAST


@dataclass
class SceneTargets:
    """Labels of a batch of columns.

    Attributes:
        labels: Class of each point. int64, [B, N]
        weights: Of the classes in the loss. [P]
    """

    labels: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> "SceneTargets":
        """The same on a device."""
        return SceneTargets(self.labels.to(device), self.weights.to(device))

    def __len__(self) -> int:
        return len(self.labels)


class Scenes:
    """The scenes of a `RoomDataset` in memory.

    Args:
        dataset: The data.
        num_points: N, points of a column that the model sees.
        columns_per_epoch: Columns of a training epoch; None for enough to hold all points.
    """

    on_disk = False

    def __init__(self, dataset: SceneDataset, num_points: int, columns_per_epoch: int | None = None) -> None:
        if columns_per_epoch is not None and columns_per_epoch < 1:
            raise ValueError(f"columns_per_epoch must be at least 1, got {columns_per_epoch}")
        self.num_points, self.columns_per_epoch = num_points, columns_per_epoch
        self.classes, self.names = tuple(dataset.classes), list(dataset.names)
        self.up_axis, self.normalized = dataset.up_axis, dataset.normalized
        self.labels: Tensor = dataset.labels  # the areas, from which a validation split is drawn evenly
        scenes = [dataset[i] for i in range(len(dataset))]
        self.points, self.point_labels = [xyz for xyz, _ in scenes], [labels for _, labels in scenes]
        self.notes = tuple(dataset.notes)  # counts dropped points, so it is complete only after the scenes are read

    def __len__(self) -> int:
        return len(self.points)

    @property
    def sizes(self) -> list[int]:
        """Points of each scene."""
        return [len(points) for points in self.points]

    @property
    def num_columns(self) -> int:
        """Columns per epoch."""
        return self.columns_per_epoch or math.ceil(sum(self.sizes) / self.num_points)

    def subset(self, indices: Sequence[int] | Tensor) -> "Scenes":
        """The same scenes, fewer of them; nothing is copied."""
        subset = object.__new__(Scenes)
        subset.__dict__ |= self.__dict__
        chosen = [int(i) for i in indices]
        for name in ("names", "points", "point_labels"):
            setattr(subset, name, [getattr(self, name)[i] for i in chosen])
        subset.labels = self.labels[chosen]
        return subset

    def content(self, index: int) -> list[Tensor]:
        """The points of a scene [n, 3] and their classes, int64 [n]."""
        return [self.points[index], self.point_labels[index]]

    def require_points(self, count: int, reason: str) -> None:
        """Refuses scenes too small for the model.

        Raises:
            ValueError: A scene has fewer than `count` points; says which one.
        """
        for name, size in zip(self.names, self.sizes, strict=True):
            if size < count:
                raise ValueError(f"{name} has {size} points, at least {count} are needed ({reason})")

    def thinned(self, num_points: int, seed: int) -> "Scenes":
        """Refused: a scene has no number of points that could be lowered."""
        raise ValueError("densities must be empty for scenes; their columns hold as many points as the scan has")

    def class_weights(self) -> Tensor:
        """(largest count / count)^(1/3) of each class; 1 for a class that does not occur. [P]"""
        counts = torch.stack([labels.bincount(minlength=len(self.classes)) for labels in self.point_labels]).sum(0)
        return torch.where(counts > 0, (counts.max() / counts.clamp(min=1)) ** (1 / 3), 1.0).float()

    def column(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A random column: points [N, 3], x and y relative to its middle, z above the floor; and their classes [N]."""
        sizes = torch.tensor(self.sizes, dtype=torch.float64)
        scene = int(torch.multinomial(sizes, 1, generator=generator))
        xyz = self.points[scene]
        best = torch.empty(0, dtype=torch.int64)
        middle = best_middle = xyz[0, :2]
        for _ in range(TRIES):
            middle = xyz[int(torch.randint(len(xyz), (1,), generator=generator)), :2]
            inside = ((xyz[:, :2] - middle).abs() <= COLUMN_SIDE / 2).all(1).nonzero().flatten()
            if len(inside) > len(best):
                best, best_middle = inside, middle
            if len(best) >= min(LEAST, len(xyz)):
                break
        pick = best[random_order(len(best), self.num_points, generator)]
        return _shifted(xyz[pick], best_middle), self.point_labels[scene][pick]

    def columns(self, count: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Random columns that a seed repeats."""
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            yield self.column(generator)

    def fixed(self) -> Tensor:
        """A column per scene. [M, N, 3]"""
        return torch.stack([points for points, _ in self.columns(len(self), 0)])

    def batches(self, batch_size: int, generator: torch.Generator, rank: int = 0, world: int = 1) -> "SceneBatches":
        """One epoch of random columns, this process's share of every batch; which columns depends on `world`."""
        return SceneBatches(self, batch_size, generator, rank, world)


class SceneBatches:
    """One epoch of training batches, (points [B, N, 3], targets)."""

    def __init__(self, scenes: Scenes, batch_size: int, generator: torch.Generator, rank: int, world: int) -> None:
        count = scenes.num_columns
        self.sizes = [len(chunk) for chunk in torch.tensor_split(torch.arange(count), math.ceil(count / batch_size))]
        require_clouds(min(self.sizes), world)
        self.scenes, self.weights, self.rank, self.world = scenes, scenes.class_weights(), rank, world
        # Each process searches columns of its own: to find a column costs more than to draw numbers.
        self.generator = torch.Generator().manual_seed(int(torch.randint(2**62, (world,), generator=generator)[rank]))

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        for size in self.sizes:
            mine = range(size)[share(size, self.rank, self.world)]
            columns = [self.scenes.column(self.generator) for _ in mine]
            points, labels = (torch.stack(column) for column in zip(*columns, strict=True))
            yield points, SceneTargets(labels, self.weights)


def windows(xyz: Tensor, num_points: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor, int]]:
    """A sliding window over a scene: every point is in at least one of its columns, most are in four.

    Args:
        xyz: A scene. [n, 3]
        num_points: N.
        generator: Source of how a column's points are dealt into groups of N.

    Yields:
        Points [N, 3] as in training; which points of the scene they are, int64 [N]; and how many of them, from the
        first, are no repetition.
    """
    low, high = xyz[:, :2].amin(0), xyz[:, :2].amax(0)
    counts = [max(1, math.ceil(float(extent - COLUMN_SIDE) / STRIDE) + 1) for extent in high - low]
    for i in range(counts[0]):
        for j in range(counts[1]):
            start = low + STRIDE * torch.tensor([i, j])
            start = torch.maximum(torch.minimum(start, high - COLUMN_SIDE), low)  # the last window ends with the scene
            near = (xyz[:, :2] >= start - PADDING) & (xyz[:, :2] <= start + COLUMN_SIDE + PADDING)
            inside = near.all(1).nonzero().flatten()
            if not len(inside):
                continue
            order = inside[torch.randperm(len(inside), generator=generator)]
            for group in order.split(num_points):
                # A column's last group is filled up with others of the same column, as often as it takes.
                short = num_points - len(group)
                filled = torch.cat([group, order[torch.arange(short) % len(order)]])
                yield _shifted(xyz[filled], start + COLUMN_SIDE / 2), filled, len(group)


def _shifted(points: Tensor, middle: Tensor) -> Tensor:
    return torch.cat([points[:, :2] - middle, points[:, 2:]], 1)
