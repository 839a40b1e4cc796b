"""Clouds of which every point has a label."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pointpeft.data.dataset import DataError, dropped_note, require_axis


class SegmentDataset(torch.utils.data.Dataset[tuple[Tensor, int, Tensor]]):
    """Clouds with one category each and one part per point; items are (points [n, 3], category, parts [n]).

    Args:
        read: Gives cloud i as (points float32 [n_i, 3], parts int64 [n_i]).
        labels: Index into `classes` of every cloud: its category. [M]
        classes: Names of the categories, one where clouds are of one kind.
        parts: Names of the parts, whose position is a point's label.
        parts_of: The parts that clouds of each category can have, ascending.
        names: What messages call a cloud.
        up_axis: The axis that points up.
        normalized: Whether the clouds were centred and scaled to the unit sphere.
        notes: Sentences worth telling the user.
        sizes: Points of every cloud, where they are known without reading it. [M]
        dropped: Receives how many points a cloud lost that were not finite, while clouds are read; see `notes`.
        listed_in: The file that says of which category each cloud is, for messages.

    Raises:
        DataError: Counts that do not agree, or parts that are none.
    """

    def __init__(
        self,
        read: Callable[[int], tuple[Tensor, Tensor]],
        labels: Tensor | Sequence[int],
        classes: Sequence[str],
        parts: Sequence[str],
        parts_of: Sequence[Sequence[int]],
        names: Sequence[str],
        *,
        up_axis: str = "y",
        normalized: bool = True,
        notes: Sequence[str] = (),
        sizes: Sequence[int] | None = None,
        dropped: dict[str, int] | None = None,
        listed_in: Path | None = None,
    ) -> None:
        self.listed_in = listed_in
        self.labels: Tensor = torch.as_tensor(labels, dtype=torch.int64).reshape(-1)
        self.classes, self.parts = tuple(classes), tuple(parts)
        self.parts_of = tuple(tuple(sorted(each)) for each in parts_of)
        self.names = list(names)
        self.up_axis = require_axis(up_axis)
        self.normalized = normalized
        self.dropped = dropped
        self._notes = tuple(notes)
        self.sizes = None if sizes is None else list(sizes)
        self._read = read
        if len(self.parts_of) != len(self.classes):
            raise DataError(f"parts_of must be as many as the classes, {len(self.classes)}, got {len(self.parts_of)}")
        if len(self.names) != len(self.labels):
            raise DataError(f"names must be as many as the labels, {len(self.labels)}, got {len(self.names)}")

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for the user, including how many points of the clouds read so far were dropped."""
        return (*self._notes, *dropped_note(self.dropped))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"index must be between 0 and {len(self) - 1}, got {index}")
        category = int(self.labels[index])
        points, parts = self._read(index)
        known = torch.tensor(self.parts_of[category])
        strange = parts[~torch.isin(parts, known)]
        if len(strange):
            raise DataError(
                f"{self.names[index]}: part {int(strange[0])} is none of its category {self.classes[category]!r}, "
                f"which has {', '.join(map(str, known.tolist()))}"
                + ("" if self.listed_in is None else f"; the category is that of {self.listed_in}")
            )
        return points.to(torch.float32), category, parts.to(torch.int64)


class SceneDataset(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Scenes, large clouds whose points have a class each; items are (points [n, 3], classes [n]).

    Args:
        read: Gives scene i as (points float32 [n_i, 3] in metres, classes int64 [n_i]).
        areas: Which area each scene lies in; a validation split has some of every area. [M]
        names: What messages call a scene.
        classes: Class names.
        up_axis: The axis that points up.
        notes: Sentences worth telling the user.
        dropped: As of `SegmentDataset`.
    """

    normalized = False

    def __init__(
        self,
        read: Callable[[int], tuple[Tensor, Tensor]],
        areas: Sequence[int],
        names: Sequence[str],
        classes: Sequence[str],
        *,
        up_axis: str = "z",
        notes: Sequence[str] = (),
        dropped: dict[str, int] | None = None,
    ) -> None:
        self.labels = torch.tensor(areas, dtype=torch.int64)
        self.names, self.classes = list(names), tuple(classes)
        self.up_axis, self.dropped = require_axis(up_axis), dropped
        self._notes = tuple(notes)
        self._read = read

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for the user, including how many points of the scenes read so far were dropped."""
        return (*self._notes, *dropped_note(self.dropped))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"index must be between 0 and {len(self) - 1}, got {index}")
        return self._read(index)
