"""Clouds in memory or on disk, cut to a common number of points and dealt out in batches."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from pointpeft.data import PointCloudDataset
from pointpeft.data.on_demand import Job, OnDemand, read_ahead, take
from pointpeft.ops import furthest_point_sample
from pointpeft.training.processes import require_clouds, share
from pointpeft.training.seeds import derive_seed

# A training batch draws its points at random from this many times as many, spread over the cloud by farthest point
# sampling: the published recipe (1200 of which 1024 are drawn, 2400 of which 2048).
SPARE = 1.2


class Clouds:
    """The clouds of a data set, in memory or on disk: their batches are the same.

    Args:
        dataset: Gives (points float32 [n_i, 3], label) by index and has the attributes of a
            `PointCloudDataset`.
        num_points: N, points of every cloud in a batch.
        indices: Which clouds of the data set; None for all.
        on_disk: Read a cloud whenever a batch wants it, and keep none. Where the data set does not know the `sizes` of
            its clouds, each is read once to count its points.
        workers: Processes that read training batches ahead of their use, of clouds on disk.

    Raises:
        ValueError: No cloud at all.
    """

    start_method: str | None = None  # of workers; None: see `read_ahead`

    def __init__(
        self,
        dataset: PointCloudDataset,
        num_points: int,
        indices: Sequence[int] | Tensor | None = None,
        *,
        on_disk: bool = False,
        workers: int = 0,
    ) -> None:
        chosen = range(len(dataset)) if indices is None else [int(i) for i in indices]
        if not chosen:
            raise ValueError("the data set has no clouds in this split")
        spare = math.ceil(SPARE * num_points)
        self.num_points = num_points
        self.on_disk, self.workers = on_disk, workers
        self.classes: tuple[str, ...] = tuple(dataset.classes)
        self.up_axis: str = dataset.up_axis
        self.normalized: bool = dataset.normalized
        self.names: list[str] = [dataset.names[i] for i in chosen]
        self.points: Sequence[Tensor]
        self.sizes: list[int]  # points as read
        if on_disk:
            known = dataset.sizes
            self.sizes = [len(dataset[i][0]) for i in chosen] if known is None else [known[i] for i in chosen]
            self.labels = torch.as_tensor(dataset.labels, dtype=torch.int64)[torch.as_tensor(chosen)]
            self.points = OnDemand(partial(_spread_cloud, dataset, spare), chosen)
        else:
            self.points, self.sizes, labels = [], [], []
            for i in chosen:
                points, label = dataset[i]
                self.points.append(spread(points, spare))
                self.sizes.append(len(points))
                labels.append(int(label))
            self.labels = torch.tensor(labels, dtype=torch.int64)
        self.lengths = [min(size, spare) for size in self.sizes]  # points of each in `points`
        self.notes: tuple[str, ...] = dataset.notes  # after the clouds were read: it says what was left out of them

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Sequence[int] | Tensor) -> "Clouds":
        """The same clouds, fewer of them; nothing is copied."""
        subset = object.__new__(Clouds)
        subset.__dict__ |= self.__dict__
        chosen = [int(i) for i in indices]
        for name in ("names", "sizes", "lengths"):
            setattr(subset, name, [getattr(self, name)[i] for i in chosen])
        points = self.points
        subset.points = points.subset(chosen) if isinstance(points, OnDemand) else [points[i] for i in chosen]
        subset.labels = self.labels[chosen]
        return subset

    def content(self, index: int) -> list[Tensor]:
        """The points of a cloud, spread over it. [n, 3]"""
        return [self.points[index]]

    def require_points(self, count: int, reason: str) -> None:
        """Refuses clouds too small for the model.

        Raises:
            ValueError: A cloud has fewer than `count` points; says which one.
        """
        for name, size in zip(self.names, self.sizes, strict=True):
            if size < count:
                raise ValueError(
                    f"{name} has {size} points, at least {count} are needed ({reason}); "
                    f"leave that cloud out, or ask for smaller groups: --set group_size={max(1, size)}"
                )

    def rows(self, row: Callable[[int], Tensor]) -> "Tensor | OnDemand":
        """The rows that a function computes for each cloud by its index, all of one shape. [M, ...]

        Where the clouds are on disk it is called when a row is read, else at once.
        """
        return OnDemand(row, range(len(self))) if self.on_disk else torch.stack([row(i) for i in range(len(self))])

    def fixed(self) -> "Tensor | OnDemand":
        """The clouds as they are evaluated: no randomness, no cloud depends on another. [M, N, 3]"""
        return self.rows(lambda i: fit(self.points[i], self.num_points))

    def thinned(self, num_points: int, seed: int) -> "Clouds":
        """The clouds seen by fewer points: drawn at random from those in `fixed`, not spread over the cloud."""
        thinner = self.subset(range(len(self)))

        def row(index: int) -> Tensor:
            pick = torch.randperm(self.num_points, generator=thinning(seed, index))[:num_points].sort().values
            return fit(self.points[index], self.num_points)[pick]

        thinner.points = self.rows(row)  # pyrefly: ignore[bad-assignment]  # a tensor is a sequence of its rows
        thinner.lengths = [num_points] * len(thinner)
        thinner.num_points = num_points
        return thinner

    def batches(self, batch_size: int, generator: torch.Generator, rank: int = 0, world: int = 1) -> "Batches":
        """One epoch: every cloud once in random order, with points drawn at random.

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
        for chunk, batch in zip(self.chunks, self._read(self.clouds.points), strict=True):
            yield batch, self.clouds.labels[chunk[self._mine(chunk)]]

    def _read(self, rows: Sequence[Tensor]) -> Iterator[Tensor]:
        """This process's rows of one batch after another. [B, N, columns] each"""
        jobs = map(self._job, self.chunks)
        if isinstance(rows, OnDemand):
            return read_ahead(rows, jobs, self.clouds.workers, self.clouds.start_method)
        return map(partial(take, rows), jobs)

    def _mine(self, chunk: Tensor) -> slice:
        return share(len(chunk), self.rank, self.world)

    def _job(self, chunk: Tensor) -> Job:
        """This process's rows, and the points drawn of each, by their lengths alone: none needs to be read for it."""
        mine = self._mine(chunk)
        return chunk[mine].tolist(), self._picks(chunk)[mine]

    def _picks(self, chunk: Tensor) -> Tensor:
        """Places of N random points of each cloud. int64, [B, N]"""
        lengths, n = [self.clouds.lengths[i] for i in chunk.tolist()], self.clouds.num_points
        if all(length == lengths[0] for length in lengths) and lengths[0] >= n:
            # Drawing for all at once is many times faster than cloud by cloud.
            return torch.rand(len(lengths), lengths[0], generator=self.generator).argsort(1)[:, :n]
        return torch.stack([drawn(length, n, self.generator) for length in lengths])


def _spread_cloud(dataset: PointCloudDataset, count: int, index: int) -> Tensor:
    return spread(dataset[index][0], count)


def draw(points: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """N random points: without repetition where there are enough, else all of them and random repetitions. [N, 3]"""
    return points[drawn(len(points), n, generator)]


def drawn(size: int, n: int, generator: torch.Generator) -> Tensor:
    """Places of N random points among `size`, as `draw` takes them. int64, [N]"""
    order = torch.randperm(size, generator=generator)
    if size < n:
        extra = torch.randint(size, (n - size,), generator=generator)
        order = torch.cat([order, extra])
    return order[:n]


def thinning(seed: int, index: int) -> torch.Generator:
    """The generator of the points that a cloud keeps in `thinned`; it depends on the cloud's index alone."""
    return torch.Generator().manual_seed(derive_seed(seed, "thinned", index))


def spread(points: Tensor, count: int) -> Tensor:
    """At most `count` points, chosen by farthest point sampling. [n, 3] -> [min(n, count), 3]"""
    points = points.float()
    if len(points) <= count:
        return points
    return points[furthest_point_sample(points[None], count)[0]]


def fit(points: Tensor, n: int) -> Tensor:
    """Exactly N points without randomness: farthest point sampling, or a repetition drawn by a fixed seed. [N, 3]"""
    if len(points) >= n:
        return spread(points, n)
    return draw(points, n, torch.Generator().manual_seed(0))
