"""Intersection over union of parts, per cloud and per category."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pointpeft.tasks.base import heading


@dataclass(frozen=True)
class PartMetrics:
    """How well points were assigned to parts.

    Attributes:
        instance_miou: Mean over clouds of the mean IoU over the parts of their category.
        class_miou: Mean over the categories present of their clouds' mean.
        accuracy: Share of the points assigned correctly.
        loss: Mean cross-entropy over points, all parts competing.
        cloud_iou: Mean IoU of each cloud. [M]
        labels: Category of each cloud. [M]
    """

    instance_miou: float
    class_miou: float
    accuracy: float
    loss: float
    cloud_iou: Tensor
    labels: Tensor

    NUMBERS = ("instance_miou", "class_miou", "point_accuracy", "loss")

    @property
    def score(self) -> list[float]:
        """Numbers that selection maximises, in order of precedence."""
        return [self.instance_miou, -self.loss]

    def logged(self) -> dict[str, float]:
        """Numbers for the log of every epoch."""
        return {heading(name): value for name, value in self._numbers().items()}

    def summary(self) -> dict[str, float | int]:
        """The single numbers, rounded as results are printed."""
        return {name: round(value, 4) for name, value in self._numbers().items()} | {"clouds": len(self.labels)}

    def _numbers(self) -> dict[str, float]:
        return dict(zip(self.NUMBERS, (self.instance_miou, self.class_miou, self.accuracy, self.loss), strict=True))

    def per_class(self, classes: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        """Mean IoU and number of clouds by category; None where a category has no cloud."""
        numbers = {}
        for i, name in enumerate(classes):
            iou = self.cloud_iou[self.labels == i]
            numbers[name] = {"miou": round(float(iou.mean()), 4) if len(iou) else None, "clouds": len(iou)}
        return numbers


def predicted_parts(logits: Tensor, category: Tensor, allowed: Tensor) -> Tensor:
    """The best part among those of the cloud's category.

    Args:
        logits: [M, N, P]
        category: Of each cloud. int64, [M]
        allowed: Which parts a category can have. bool, [categories, P]

    Returns:
        int64, [M, N]
    """
    return logits.masked_fill(~allowed[category][:, None], -torch.inf).argmax(-1)


def measure_parts(
    predicted: Tensor,
    parts: Tensor,
    counted: Tensor,
    category: Tensor,
    parts_of: tuple[tuple[int, ...], ...],
    loss: float,
) -> PartMetrics:
    """Metrics as papers report them on ShapeNetPart: a part that is neither there nor predicted has IoU 1.

    Args:
        predicted: [M, N]
        parts: True ones. [M, N]
        counted: Points of each cloud that count, from its first. [M]
        category: Of each cloud. [M]
        parts_of: Parts of each category.
        loss: Carried along.
    """
    ious, right = [], 0
    for answer, true, n, label in zip(predicted, parts, counted.tolist(), category.tolist(), strict=True):
        answer, true = answer[:n], true[:n]
        right += int((answer == true).sum())
        candidates = torch.tensor(parts_of[label])[:, None]
        intersection = ((answer == candidates) & (true == candidates)).sum(1)
        union = ((answer == candidates) | (true == candidates)).sum(1)
        ious.append(torch.where(union > 0, intersection / union.clamp(min=1), 1.0).mean())
    cloud_iou = torch.stack(ious)
    labels = category.unique()
    return PartMetrics(
        instance_miou=float(cloud_iou.mean()),
        class_miou=float(torch.stack([cloud_iou[category == label].mean() for label in labels]).mean()),
        accuracy=right / int(counted.sum()),
        loss=loss,
        cloud_iou=cloud_iou,
        labels=category,
    )
