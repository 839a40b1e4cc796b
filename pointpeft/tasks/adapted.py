"""A model with its adapter, as evaluation, prediction and the pages use it."""

from dataclasses import dataclass, field
from typing import Any

import torch

from pointpeft.model import PointModel


@dataclass(frozen=True)
class Adapted:
    """A model with an adapter, and the properties of its training data.

    Attributes:
        model: On its device, in evaluation mode.
        classes: Names by index of the logits.
        num_points: Points per cloud it was trained with.
        normalized: Whether its training clouds were centred and scaled to the unit sphere; new ones must be, too.
        metadata: Everything that the adapter records about its training.
    """

    model: PointModel
    classes: tuple[str, ...]
    num_points: int
    normalized: bool
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def fewest_points(self) -> int:
        """Smallest number of points of a cloud: those of one patch."""
        return self.model.backbone.config.group_size

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device
