"""Clouds with labelled points, held in memory and dealt out in batches."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pointpeft.ops import furthest_point_sample
from pointpeft.training.clouds import Batches, Clouds


@dataclass
class Targets:
    """What a batch of points is to be classified as.

    Attributes:
        category: Of each cloud. int64, [B]
        parts: Of each point. int64, [B, N]
    """

    category: Tensor
    parts: Tensor

    def to(self, device: torch.device) -> "Targets":
        """The same on a device."""
        return Targets(self.category.to(device), self.parts.to(device))

    def __len__(self) -> int:
        return len(self.category)


class PartClouds(Clouds):
    """The clouds of a `SegmentDataset` in memory, with all their points.

    Training draws N points of a cloud at random; evaluation takes N spread over it by farthest point sampling.
    A cloud of fewer points repeats some, which evaluation counts once.

    Args:
        dataset: The data.
        num_points: N, points of every cloud in a batch.
    """

    def __init__(self, dataset: Any, num_points: int) -> None:
        if not len(dataset):
            raise ValueError("the data set has no clouds in this part")
        self.num_points = num_points
        self.on_disk, self.workers = False, 0
        self.classes, self.parts = tuple(dataset.classes), tuple(dataset.parts)
        self.parts_of: tuple[tuple[int, ...], ...] = tuple(dataset.parts_of)
        self.up_axis, self.normalized, self.notes = dataset.up_axis, dataset.normalized, dataset.notes
        self.names = list(dataset.names)
        self.points, self.point_labels = [], []
        for i in range(len(dataset)):
            points, _, parts = dataset[i]
            self.points.append(points)
            self.point_labels.append(parts)
        self.sizes = [len(points) for points in self.points]
        self.labels = torch.as_tensor(dataset.labels, dtype=torch.int64)
        self._fixed: Tensor | None = None

    def subset(self, indices: Sequence[int] | Tensor) -> "PartClouds":
        """The same clouds, fewer of them; nothing is copied."""
        part = object.__new__(PartClouds)
        part.__dict__ |= self.__dict__
        chosen = [int(i) for i in indices]
        for name in ("names", "points", "point_labels", "sizes"):
            setattr(part, name, [getattr(self, name)[i] for i in chosen])
        part.labels = self.labels[chosen]
        part._fixed = None
        return part

    @property
    def allowed(self) -> Tensor:
        """Which parts a category can have. bool, [categories, parts]"""
        allowed = torch.zeros(len(self.classes), len(self.parts), dtype=torch.bool)
        for category, parts in enumerate(self.parts_of):
            allowed[category, list(parts)] = True
        return allowed

    def fixed_indices(self) -> Tensor:
        """The points by which clouds are evaluated; of a small one all, then repetitions. int64, [M, N]"""
        if self._fixed is None:
            self._fixed = torch.stack([fixed_order(points, self.num_points) for points in self.points])
        return self._fixed

    def fixed(self) -> Tensor:
        """The points by which clouds are evaluated. [M, N, 3]"""
        return torch.stack([p[i] for p, i in zip(self.points, self.fixed_indices(), strict=True)])

    def fixed_parts(self) -> Tensor:
        """Their parts. int64, [M, N]"""
        return torch.stack([p[i] for p, i in zip(self.point_labels, self.fixed_indices(), strict=True)])

    def counted(self) -> Tensor:
        """How many of them are no repetition. int64, [M]"""
        return torch.tensor([min(size, self.num_points) for size in self.sizes])

    def thinned(self, num_points: int, seed: int) -> "PartClouds":
        """The clouds seen by fewer points: a random part of those in `fixed`, not spread over the cloud."""
        part = self.subset(range(len(self)))
        generator = torch.Generator().manual_seed(seed)
        kept = []
        for fixed, n in zip(self.fixed_indices(), self.counted().tolist(), strict=True):
            pick = random_order(n, num_points, generator)
            kept.append(fixed[pick.sort().values if num_points <= n else pick])  # in order, but repetitions last
        part.points = [points[i] for points, i in zip(self.points, kept, strict=True)]
        part.point_labels = [parts[i] for parts, i in zip(self.point_labels, kept, strict=True)]
        part.sizes = [min(n, num_points) for n in self.counted().tolist()]
        part.num_points = num_points
        part._fixed = torch.arange(num_points).expand(len(part), -1)
        return part

    def batches(self, batch_size: int, generator: torch.Generator, rank: int = 0, world: int = 1) -> "PartBatches":
        """One epoch, as `Clouds.batches`."""
        return PartBatches(self, batch_size, generator, rank, world)


class PartBatches(Batches):
    """One epoch of training batches, (points [B, N, 3], targets)."""

    clouds: PartClouds  # pyrefly: ignore[bad-override-mutable-attribute]  # set once, by __init__

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        for chunk in self.chunks:
            picks = [random_order(self.clouds.sizes[i], self.clouds.num_points, self.generator) for i in chunk.tolist()]
            mine = self._mine(chunk)
            chosen, picks = chunk[mine].tolist(), picks[mine]
            points = [self.clouds.points[i][pick] for i, pick in zip(chosen, picks, strict=True)]
            parts = [self.clouds.point_labels[i][pick] for i, pick in zip(chosen, picks, strict=True)]
            yield torch.stack(points), Targets(self.clouds.labels[chosen], torch.stack(parts))


def random_order(size: int, n: int, generator: torch.Generator) -> Tensor:
    """N of `size` points: without repetition where there are enough, else all of them first. int64, [N]"""
    order = torch.randperm(size, generator=generator)
    repeats = math.ceil(max(0, n - size) / size)
    return torch.cat([order, *(torch.randperm(size, generator=generator) for _ in range(repeats))])[:n]


def fixed_order(points: Tensor, n: int) -> Tensor:
    """N points of a cloud without randomness: by farthest point sampling, or all of them first. int64, [N]"""
    if len(points) > n:
        return furthest_point_sample(points[None], n)[0]
    return random_order(len(points), n, torch.Generator().manual_seed(0))
