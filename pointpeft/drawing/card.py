"""One cloud and what a model made of it, ready to be drawn."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

DEPTH, CLASS, PART, TRUE_PART = "depth", "class", "part", "true part"
POINT_CLASS, TRUE_POINT_CLASS = "class of each point", "true class of each point"


@dataclass
class Card:
    """One cloud and what the model made of it.

    Attributes:
        name: Of the file or cloud.
        xyz: [N, 3]
        predicted: Class or category; of a scene, how many points it has.
        confidence: Probability of `predicted`; for points the share of correct ones where that is known, else None.
        true: The true class, where it is known.
        labels: By name the layers of names: class or part of each point, int64 [N], and the names by index.
        amounts: By name the layers of numbers. [N] each
        memory: Columns of a memory bank that the cloud recalls, each with its cosine.
    """

    name: str
    xyz: Tensor
    predicted: str
    confidence: float | None
    true: str | None
    labels: dict[str, tuple[Tensor, Sequence[str]]]
    amounts: dict[str, Tensor]
    memory: list[tuple[int, float]] = field(default_factory=list)
