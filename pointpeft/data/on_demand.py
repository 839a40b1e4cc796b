"""Tensors that are read or computed on demand, for data larger than memory."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from pointpeft.data import DataError

WAIT = 600.0  # seconds for one batch, after which a worker that neither reads nor dies is an error


class OnDemand(Sequence[Tensor]):
    """A sequence of tensors, each computed when it is accessed and not cached.

    Args:
        row: Gives one of them by its index; a function that can be pickled where workers are to call it.
        indices: Arguments of `row`, in order.
    """

    def __init__(self, row: Callable[[int], Tensor], indices: Sequence[int]) -> None:
        self.row, self.indices = row, indices

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> "OnDemand": ...
    def __getitem__(self, index: int | slice) -> "Tensor | OnDemand":
        if isinstance(index, slice):
            return OnDemand(self.row, self.indices[index])
        return self.row(self.indices[index])

    def subset(self, chosen: Sequence[int]) -> "OnDemand":
        """The rows at some indices."""
        return OnDemand(self.row, [self.indices[i] for i in chosen])

    def split(self, size: int) -> "_Stacks":
        """As `Tensor.split`, of tensors of one shape: a sequence of batches, each made on demand."""
        return _Stacks(self, size)


class _Stacks(Sequence[Tensor]):
    def __init__(self, rows: OnDemand, size: int) -> None:
        self.rows, self.size = rows, size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.size)

    def __getitem__(self, index: Any) -> Tensor:  # pyrefly: ignore[bad-override]  # no slices
        if not 0 <= index < len(self):
            raise IndexError(f"index must be between 0 and {len(self) - 1}, got {index}")
        return torch.stack(list(self.rows[index * self.size : (index + 1) * self.size]))


# Rows of one batch, and the points to take of each, int64 [B, N].
Job = tuple[list[int], Tensor]


def take(points: Sequence[Tensor], job: Job) -> Tensor:
    """The points that a job asks for, with all their columns. [B, N, columns]

    Raises:
        DataError: A cloud cannot be read.
    """
    indices, picks = job
    # In the order of the file, so that a chunk which holds several of them is unpacked once.
    clouds = {i: points[i] for i in sorted(indices)}
    chosen = [clouds[i] for i in indices]
    if all(len(cloud) == len(chosen[0]) for cloud in chosen):
        return torch.stack(chosen).gather(1, picks[..., None].expand(-1, -1, chosen[0].shape[1]))
    return torch.stack([cloud[pick] for cloud, pick in zip(chosen, picks, strict=True)])


def read_ahead(points: OnDemand, jobs: Iterable[Job], workers: int, context: str | None = None) -> Iterator[Tensor]:
    """The points of one job after another, read by other processes while this one computes. [B, N, columns] each

    Args:
        points: What to read from.
        jobs: Asked for a few ahead of what is used.
        workers: How many processes; 0 reads here.
        context: How they are started: fork, spawn, forkserver; None for forkserver where there is one, else spawn.

    Raises:
        DataError: A cloud cannot be read.
        TimeoutError: A batch has not come for `WAIT` seconds.
    """
    if not workers:
        yield from map(partial(take, points), jobs)
        return
    loader: Any = torch.utils.data.DataLoader(
        _Jobs(points),
        batch_size=None,
        sampler=_plain(jobs),
        num_workers=workers,
        collate_fn=_as_it_is,
        multiprocessing_context=context or _start_method(),
        generator=torch.Generator(),  # its own: the global one must not depend on how clouds are read
        timeout=WAIT,
    )
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if not str(error).startswith("DataLoader timed out"):  # a worker that died has a message of its own
                raise
            raise TimeoutError(
                f"{workers} workers have read no batch for {WAIT:g} s, and none of them has died; --workers 0 reads "
                "without them"
            ) from error
        if isinstance(batch, DataError):
            raise batch
        yield torch.from_numpy(batch)


def _start_method() -> str:
    """How workers start by default: never by a fork of this process.

    A fork copies the locks of a process as they are, but of its threads only one. This process has threads: OpenMP's,
    those of trackers and progress bars. A lock that one of them holds at that moment stays locked in the worker for
    good, which then waits for ever. (h5py's own lock is not among them: h5py takes it before a fork. Nor is OpenMP's
    pool, as long as a worker keeps to the one thread that the loader gives it.) The fork server is a process without
    other threads that has imported all this once, so that its forks start as fast.
    """
    if "forkserver" not in torch.multiprocessing.get_all_start_methods():
        return "spawn"
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    return "forkserver"


class _Jobs(torch.utils.data.Dataset[Any]):
    """Clouds by jobs, as arrays: tensors would pass through shared memory, of which containers have little."""

    def __init__(self, points: OnDemand) -> None:
        self.points = points

    # pyrefly: ignore[bad-override-param-name]  # its index is a job
    def __getitem__(self, job: tuple[list[int], np.ndarray]) -> np.ndarray | DataError:
        try:
            return take(self.points, (job[0], torch.from_numpy(job[1].astype(np.int64)))).numpy()
        except DataError as error:  # raised where it is awaited, without the worker's traceback around it
            return error


def _plain(jobs: Iterable[Job]) -> Iterator[tuple[list[int], np.ndarray]]:
    return ((indices, picks.to(torch.int32).numpy()) for indices, picks in jobs)


def _as_it_is(value: Any) -> Any:
    return value
