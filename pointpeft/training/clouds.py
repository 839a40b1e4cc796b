"""Clouds held in memory, cut to a common number of points and dealt out in batches."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pointpeft.ops import furthest_point_sample
from pointpeft.training.processes import require_clouds, share

# A training batch draws its points at random from this many times as many, spread over the cloud by farthest point
# sampling: the published recipe (1200 of which 1024 are drawn, 2400 of which 2048).
SPARE = 1.2


class Clouds:
    """The clouds of a data set in memory.

    Args:
        dataset: Gives (points float32 [n_i, 3], label) by index and has the attributes of a
            `PointCloudDataset`.
        num_points: N, points of every cloud in a batch.
        indices: Which clouds of the data set; None for all.

    Raises:
        ValueError: No cloud at all.
    """

    def __init__(self, dataset: Any, num_points: int, indices: Sequence[int] | Tensor | None = None) -> None:
        chosen = range(len(dataset)) if indices is None else [int(i) for i in indices]
        if not chosen:
            raise ValueError("the data set has no clouds in this part")
        spare = math.ceil(SPARE * num_points)
        self.num_points = num_points
        self.classes: tuple[str, ...] = tuple(dataset.classes)
        self.up_axis: str = dataset.up_axis
        self.normalized: bool = dataset.normalized
        self.notes: tuple[str, ...] = dataset.notes
        self.names: list[str] = [dataset.names[i] for i in chosen]
        self.points: list[Tensor] = []
        self.sizes: list[int] = []  # points as read
        labels = []
        for i in chosen:
            points, label = dataset[i]
            self.points.append(spread(points, spare))
            self.sizes.append(len(points))
            labels.append(int(label))
        self.labels = torch.tensor(labels, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.points)

    def subset(self, indices: Sequence[int] | Tensor) -> "Clouds":
        """The same clouds, fewer of them; nothing is copied."""
        part = object.__new__(Clouds)
        chosen = [int(i) for i in indices]
        part.num_points, part.classes, part.up_axis = self.num_points, self.classes, self.up_axis
        part.normalized, part.notes = self.normalized, self.notes
        part.names = [self.names[i] for i in chosen]
        part.points = [self.points[i] for i in chosen]
        part.sizes = [self.sizes[i] for i in chosen]
        part.labels = self.labels[chosen]
        return part

    def require_points(self, least: int, reason: str) -> None:
        """Refuses clouds too small for the model.

        Raises:
            ValueError: A cloud has fewer than `least` points; says which one.
        """
        for name, size in zip(self.names, self.sizes, strict=True):
            if size < least:
                raise ValueError(
                    f"{name} has {size} points, at least {least} are needed ({reason}); "
                    f"leave that cloud out, or ask for smaller groups: --set group_size={max(1, size)}"
                )

    def fixed(self) -> Tensor:
        """The clouds as they are evaluated: no randomness, no cloud depends on another. [M, N, 3]"""
        return torch.stack([fit(points, self.num_points) for points in self.points])

    def thinned(self, num_points: int, seed: int) -> "Clouds":
        """The clouds seen by fewer points: a random part of those in `fixed`, not spread over the cloud."""
        part = self.subset(range(len(self)))
        generator = torch.Generator().manual_seed(seed)
        fixed = self.fixed()
        picks = [torch.randperm(self.num_points, generator=generator)[:num_points].sort().values for _ in fixed]
        part.points = [points[pick] for points, pick in zip(fixed, picks, strict=True)]
        part.num_points = num_points
        return part

    def batches(self, batch_size: int, generator: torch.Generator, rank: int = 0, world: int = 1) -> "Batches":
        """One epoch: every cloud once in random order, with a random part of its points.

        Args:
            batch_size: Largest batch, of all processes together. The epoch is cut into batches of equal size up to one
                cloud, since a last batch of one or two clouds would spoil the statistics of batch normalisation.
            generator: Source of the order and of the points, on the CPU, in the same state on all processes.
            rank: This process.
            world: How many processes share every batch. Their rows in order are the batch of a single process.

        Raises:
            ValueError: Batches too small to go round.
        """
        return Batches(self, batch_size, generator, rank, world)


class Batches:
    """One epoch of training batches, this process's rows of (points [B, N, 3], labels [B]).

    Attributes:
        sizes: Clouds of each batch, of all processes together.
    """

    def __init__(self, clouds: Clouds, batch_size: int, generator: torch.Generator, rank: int, world: int) -> None:
        order = torch.randperm(len(clouds), generator=generator)
        self.chunks = torch.tensor_split(order, math.ceil(len(order) / batch_size))
        self.sizes = [len(chunk) for chunk in self.chunks]
        require_clouds(min(self.sizes), world)
        self.rank, self.world = rank, world
        self.clouds = clouds
        # All processes draw the points of all clouds, so that a cloud's points depend on no number of processes.
        self.generator = torch.Generator().manual_seed(int(torch.randint(2**62, (1,), generator=generator)))

    def __len__(self) -> int:
        return len(self.chunks)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for chunk in self.chunks:
            yield self._points(chunk), self.clouds.labels[chunk[self._mine(chunk)]]

    def _mine(self, chunk: Tensor) -> slice:
        return share(len(chunk), self.rank, self.world)

    def _points(self, chunk: Tensor) -> Tensor:
        mine = self._mine(chunk)
        n = self.clouds.num_points
        clouds = [self.clouds.points[i] for i in chunk.tolist()]
        if all(len(points) == len(clouds[0]) for points in clouds) and len(clouds[0]) >= n:
            # Drawing for all at once is many times faster than cloud by cloud.
            keys = torch.rand(len(clouds), len(clouds[0]), generator=self.generator)[mine]
            stacked = torch.stack(clouds[mine])
            pick = keys.argsort(1)[:, :n]
            return stacked.gather(1, pick[..., None].expand(-1, -1, 3))
        return torch.stack([draw(points, n, self.generator) for points in clouds][mine])


def draw(points: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """N random points: without repetition where there are enough, else all of them and random repetitions. [N, 3]"""
    order = torch.randperm(len(points), generator=generator)
    if len(points) < n:
        extra = torch.randint(len(points), (n - len(points),), generator=generator)
        order = torch.cat([order, extra])
    return points[order[:n]]


def spread(points: Tensor, most: int) -> Tensor:
    """At most `most` points, chosen by farthest point sampling. [n, 3] -> [min(n, most), 3]"""
    points = points.float()
    if len(points) <= most:
        return points
    return points[furthest_point_sample(points[None], most)[0]]


def fit(points: Tensor, n: int) -> Tensor:
    """Exactly N points without randomness: farthest point sampling, or a repetition drawn by a fixed seed. [N, 3]"""
    if len(points) >= n:
        return spread(points, n)
    return draw(points, n, torch.Generator().manual_seed(0))
