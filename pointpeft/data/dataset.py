"""A labelled set of point clouds, each with its own number of points."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

AXES = ("x", "y", "z")


class DataError(ValueError):
    """A file or a data set that cannot be used; says which one and why."""


class PointCloudDataset(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Clouds with one label each; every item is `(points float32 [n_i, 3], label)`.

    Args:
        clouds: The clouds, float32 [n_i, 3] each; a tensor [M, N, 3] where all are of one size; or a function that
            reads cloud i, for sets too large for memory.
        labels: Index into `classes` of every cloud, integer. [M]
        classes: Class names; the position is the label.
        names: What messages call a cloud, by default "cloud 0", "cloud 1", ...
        up_axis: The axis that points up: "x", "y" or "z".
        normalized: Whether the clouds were centred and scaled to the unit sphere; a new cloud must be treated alike.
        notes: Sentences worth telling the user about how the set came about, such as a split drawn by chance.
        sizes: Points of every cloud, where they are known without reading it. [M]
        dropped: Receives how many points a cloud lost that were not finite, while clouds are read; see `notes`.

    Raises:
        DataError: Counts that do not agree, a label without a class, an axis that is none.
    """

    def __init__(
        self,
        clouds: Tensor | Sequence[Tensor] | Callable[[int], Tensor],
        labels: Tensor | Sequence[int],
        classes: Sequence[str],
        names: Sequence[str] | None = None,
        *,
        up_axis: str = "z",
        normalized: bool = False,
        notes: Sequence[str] = (),
        sizes: Sequence[int] | None = None,
        dropped: dict[str, int] | None = None,
    ) -> None:
        self.labels: Tensor = torch.as_tensor(labels, dtype=torch.int64).reshape(-1).cpu()
        self.classes: tuple[str, ...] = tuple(classes)
        self.names: list[str] = [f"cloud {i}" for i in range(len(self.labels))] if names is None else list(names)
        self.up_axis: str = require_axis(up_axis)
        self.normalized = normalized
        self.dropped = dropped
        self._notes = tuple(notes)
        self.sizes: list[int] | None = None if sizes is None else list(sizes)
        self._clouds = clouds
        count = len(self.labels)
        if not callable(clouds) and len(clouds) != count:
            raise DataError(f"labels must be as many as the clouds, {len(clouds)}, got {count}")
        if self.sizes is not None and len(self.sizes) != count:
            raise DataError(f"sizes must be as many as the labels, {count}, got {len(self.sizes)}")
        if len(self.names) != count:
            raise DataError(f"names must be as many as the labels, {count}, got {len(self.names)}")
        if count and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            raise DataError(
                f"labels must be between 0 and {len(self.classes) - 1} ({len(self.classes)} classes), "
                f"got {int(self.labels.min())} to {int(self.labels.max())}"
            )

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for the user, including how many points of the clouds read so far were dropped."""
        return (*self._notes, *dropped_note(self.dropped))

    @notes.setter
    def notes(self, notes: Sequence[str]) -> None:
        self._notes = tuple(notes)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index must be between 0 and {len(self) - 1}, got {index}")
        index = int(index) % len(self)
        points = self._clouds(index) if callable(self._clouds) else self._clouds[index]
        return points.to(torch.float32), int(self.labels[index])

    def subset(self, indices: Sequence[int] | Tensor) -> "PointCloudDataset":
        """The clouds at `indices`, in that order, under the same classes; nothing is copied."""
        chosen = [range(len(self))[int(i)] for i in indices]  # a range refuses an index out of bounds
        return PointCloudDataset(
            partial(_points_of, self, chosen),  # no lambda: a data loader sends the set to its workers
            self.labels[chosen],
            self.classes,
            [self.names[i] for i in chosen],
            up_axis=self.up_axis,
            normalized=self.normalized,
            notes=self._notes,
            dropped=self.dropped,
            sizes=None if self.sizes is None else [self.sizes[i] for i in chosen],
        )


def dropped_note(dropped: dict[str, int] | None) -> tuple[str, ...]:
    """A note about dropped points that were not finite, where there are any."""
    if not dropped:
        return ()
    return (f"{sum(dropped.values())} points that are not finite were left out of {len(dropped)} clouds",)


def _points_of(dataset: PointCloudDataset, chosen: list[int], index: int) -> Tensor:
    return dataset[chosen[index]][0]


def at_most(points: Tensor, num_points: int | None) -> Tensor:
    """Keeps at most `num_points` of the points, drawn with a fixed seed, the same places in every cloud.

    Args:
        points: One cloud or many of one size. [..., N, 3]
        num_points: The most that are kept; None for all.

    Raises:
        ValueError: num_points < 1.
    """
    if num_points is not None and num_points < 1:
        raise ValueError(f"num_points must be at least 1, got {num_points}")
    if num_points is None or points.shape[-2] <= num_points:
        return points
    order = torch.randperm(points.shape[-2], generator=torch.Generator().manual_seed(0))
    return points[..., order[:num_points], :]


def require_axis(axis: str) -> str:
    """Gives the axis back.

    Raises:
        DataError: It is not one of "x", "y", "z".
    """
    if axis not in AXES:
        raise DataError(f'up_axis must be "x", "y" or "z", got {axis!r}')
    return axis
