"""Clouds with labelled points, held in memory and dealt out in batches."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pointpeft.data.on_demand import OnDemand
from pointpeft.data.segments import SegmentDataset
from pointpeft.ops import furthest_point_sample
from pointpeft.tasks.batches import Batches, Clouds, thinning


@dataclass
class Targets:
    """Labels of a batch of points.

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
    """The clouds of a `SegmentDataset` with all their points, in memory or on disk: their batches are the same.

    Training draws N points of a cloud at random; evaluation takes N spread over it by farthest point sampling.
    A cloud of fewer points repeats some, which evaluation counts once.

    Args:
        dataset: The data.
        num_points: N, points of every cloud in a batch.
        on_disk: As in `Clouds`.
        workers: As in `Clouds`.

    Attributes:
        labelled: Points and, as a fourth column, their parts. float32, [n_i, 4] each
    """

    def __init__(self, dataset: SegmentDataset, num_points: int, *, on_disk: bool = False, workers: int = 0) -> None:
        if not len(dataset):
            raise ValueError("the data set has no clouds in this split")
        self.num_points = num_points
        self.on_disk, self.workers = on_disk, workers
        self.classes, self.parts = tuple(dataset.classes), tuple(dataset.parts)
        self.parts_of: tuple[tuple[int, ...], ...] = tuple(dataset.parts_of)
        self.up_axis, self.normalized = dataset.up_axis, dataset.normalized
        self.names = list(dataset.names)
        row = partial(_labelled, dataset)
        everything = range(len(dataset))
        self.labelled: Sequence[Tensor] = OnDemand(row, everything) if on_disk else [row(i) for i in everything]
        known = dataset.sizes if on_disk else None
        self.sizes = [len(rows) for rows in self.labelled] if known is None else list(known)
        self.notes = dataset.notes  # after the clouds were read: it says what was left out of them
        self.labels = torch.as_tensor(dataset.labels, dtype=torch.int64)
        self._orders: Tensor | None = None
        self._as_they_are = False

    def subset(self, indices: Sequence[int] | Tensor) -> "PartClouds":
        """The same clouds, fewer of them; nothing is copied."""
        part = object.__new__(PartClouds)
        part.__dict__ |= self.__dict__
        chosen = [int(i) for i in indices]
        for name in ("names", "sizes"):
            setattr(part, name, [getattr(self, name)[i] for i in chosen])
        rows = self.labelled
        part.labelled = rows.subset(chosen) if isinstance(rows, OnDemand) else [rows[i] for i in chosen]
        part.labels = self.labels[chosen]
        part._orders = None
        return part

    def content(self, index: int) -> list[Tensor]:
        """The points of a cloud with their parts. [n, 4]"""
        return [self.labelled[index]]

    @property
    def allowed(self) -> Tensor:
        """Which parts a category can have. bool, [categories, parts]"""
        allowed = torch.zeros(len(self.classes), len(self.parts), dtype=torch.bool)
        for category, parts in enumerate(self.parts_of):
            allowed[category, list(parts)] = True
        return allowed

    def fixed_rows(self, index: int, rows: Tensor) -> Tensor:
        """The points of a cloud by which it is evaluated; of a small one all, then repetitions. [n, 4] -> [N, 4]"""
        if self._as_they_are:
            return rows
        if self.on_disk:
            return rows[fixed_order(rows[:, :3], self.num_points)]
        if self._orders is None:  # of clouds in memory it is found once
            self._orders = torch.stack([fixed_order(each[:, :3], self.num_points) for each in self.labelled])
        return rows[self._orders[index]]

    def fixed(self) -> "Tensor | OnDemand":
        """The points by which clouds are evaluated. [M, N, 3]"""
        return self.rows(lambda i: self.fixed_rows(i, self.labelled[i])[:, :3])

    def fixed_parts(self) -> "Tensor | OnDemand":
        """Their parts. int64, [M, N]"""
        return self.rows(lambda i: self.fixed_rows(i, self.labelled[i])[:, 3].long())

    def counted(self) -> Tensor:
        """How many of them are no repetition. int64, [M]"""
        return torch.tensor([min(size, self.num_points) for size in self.sizes])

    def thinned(self, num_points: int, seed: int) -> "PartClouds":
        """The clouds seen by fewer points: a random part of those in `fixed`, not spread over the cloud."""
        part = self.subset(range(len(self)))
        counted = self.counted().tolist()

        def row(index: int) -> Tensor:
            pick = random_order(counted[index], num_points, thinning(seed, index))
            if num_points <= counted[index]:  # in order, but repetitions last
                pick = pick.sort().values
            return self.fixed_rows(index, self.labelled[index])[pick]

        part.labelled = self.rows(row)  # pyrefly: ignore[bad-assignment]  # a tensor is a sequence of its rows
        part.sizes = [min(n, num_points) for n in counted]
        part.num_points, part._as_they_are = num_points, True
        return part

    def batches(self, batch_size: int, generator: torch.Generator, rank: int = 0, world: int = 1) -> "PartBatches":
        """One epoch, as `Clouds.batches`."""
        return PartBatches(self, batch_size, generator, rank, world)


class PartBatches(Batches):
    """One epoch of training batches, (points [B, N, 3], targets)."""

    clouds: PartClouds  # pyrefly: ignore[bad-override-mutable-attribute]  # set once, by __init__

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        for chunk, batch in zip(self.chunks, self._read(self.clouds.labelled), strict=True):
            yield batch[..., :3], Targets(self.clouds.labels[chunk[self._mine(chunk)]], batch[..., 3].long())

    def _picks(self, chunk: Tensor) -> Tensor:
        sizes, n = (self.clouds.sizes[i] for i in chunk.tolist()), self.clouds.num_points
        return torch.stack([random_order(size, n, self.generator) for size in sizes])


def _labelled(dataset: SegmentDataset, index: int) -> Tensor:
    points, _, parts = dataset[index]
    return torch.cat([points, parts[:, None].to(points.dtype)], 1)  # numbers of parts are far below 2^24


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
