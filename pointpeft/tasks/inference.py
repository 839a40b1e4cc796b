"""Logits and features of many clouds, batch by batch; a cloud's logits depend on no other cloud."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pointpeft.data.on_demand import OnDemand
from pointpeft.data.transforms import named
from pointpeft.progress import make_bar
from pointpeft.tasks.batches import Clouds, draw
from pointpeft.training.processes import deal
from pointpeft.training.seeds import derive_seed


@dataclass(frozen=True)
class Voting:
    """The passes whose answers are averaged: the clean one, then others with random points and an augmentation.

    Attributes:
        votes: How many in all.
        seed: Of the others.
        augment: Of the others, one or several by name.
    """

    votes: int = 1
    seed: int = 0
    augment: str = "scale_translate"

    def __post_init__(self) -> None:
        if self.votes < 1:
            raise ValueError(f"votes must be at least 1, got {self.votes}")
        named(self.augment, "y")

    def views(self, clouds: Clouds) -> "Iterator[Tensor | OnDemand]":
        """Points of all clouds, pass by pass; what a cloud draws depends on its place alone. [M, N, 3] each"""
        yield clouds.fixed()
        augment = named(self.augment, clouds.up_axis)
        for number in range(1, self.votes):

            def row(index: int, number: int = number) -> Tensor:
                generator = torch.Generator().manual_seed(derive_seed(self.seed, "vote", number, index))
                points = draw(clouds.points[index], clouds.num_points, generator)
                return augment(points[None], generator)[0]

            yield clouds.rows(row)

    def dense_views(
        self, indices: Sequence[int], points: Sequence[Tensor], fixed: Tensor, up_axis: str
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Points for the tokens and points to classify, pass by pass: always the clean pass's, moved alike.

        Args:
            indices: Places of the clouds in their data set, on which alone depends what they draw. [B]
            points: Their points. [n_i, 3] each
            fixed: Those of the clean pass. [B, N, 3]
            up_axis: Of the augmentation.
        """
        yield fixed, fixed
        augment, n = named(self.augment, up_axis), fixed.shape[1]
        for number in range(1, self.votes):
            moved = []
            for index, cloud, query in zip(indices, points, fixed, strict=True):
                generator = torch.Generator().manual_seed(derive_seed(self.seed, "vote", number, index))
                moved.append(augment(torch.cat([draw(cloud, n, generator), query])[None], generator)[0])
            both = torch.stack(moved)
            yield both[:, :n], both[:, n:]


@torch.no_grad()
def forward_all(
    forward: Callable[[Tensor], Tensor],
    inputs: Tensor | OnDemand,
    batch_size: int,
    device: torch.device,
    title: str | None = None,
) -> Tensor:
    """The outputs of a module for many inputs, computed batch by batch, on the CPU in float32.

    Args:
        forward: A module in evaluation mode, or a method of one.
        inputs: One row per cloud. [M, ...]
        batch_size: Rows per step.
        device: Where the module lives.
        title: Of a progress bar, or None for none.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    bar = make_bar(inputs.split(batch_size), title, unit="batch", leave=False)
    return torch.cat([forward(chunk.to(device)).float().cpu() for chunk in bar])


@torch.no_grad()
def forward_shared(
    forward: Callable[[Tensor], Tensor],
    inputs: Tensor | OnDemand,
    batch_size: int,
    device: torch.device,
    title: str | None = None,
) -> Tensor:
    """As `forward_all`, each batch computed by one of the processes, which must all call this; all get all rows."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    chunks = inputs.split(batch_size)
    return torch.cat(deal(chunks, lambda chunk: forward(chunk.to(device)).float().cpu(), title, "batch"))


def voted_logits(
    model: nn.Module, clouds: Clouds, batch_size: int, voting: Voting | None = None, title: str | None = None
) -> Tensor:
    """Mean of the logits over the passes of a vote; leaves the model in evaluation mode. [M, classes]"""
    model.eval()
    device = next(model.parameters()).device
    voting = Voting() if voting is None else voting
    total: Any = sum(forward_shared(model, points, batch_size, device, title) for points in voting.views(clouds))
    return total / voting.votes
