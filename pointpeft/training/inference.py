"""Logits and features of many clouds, batch by batch; a cloud's logits depend on no other cloud."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pointpeft.data.transforms import named
from pointpeft.training.clouds import Clouds, draw
from pointpeft.training.loop import derive_seed


def views(clouds: Clouds, vote: int, seed: int) -> Iterator[Tensor]:
    """The passes of a vote: the clean one, then random points under scale and translation. [M, N, 3] each

    Raises:
        ValueError: vote < 1.
    """
    if vote < 1:
        raise ValueError(f"vote must be at least 1, got {vote}")
    yield clouds.fixed()
    augment = named("scale_translate", "y")
    for number in range(1, vote):
        generator = torch.Generator().manual_seed(derive_seed(seed, "vote", number))
        points = torch.stack([draw(p, clouds.num_points, generator) for p in clouds.points])
        yield augment(points, generator)


@torch.no_grad()
def forward_all(
    forward: Callable[[Tensor], Tensor], inputs: Tensor, batch_size: int, device: torch.device, title: str | None = None
) -> Tensor:
    """What a module gives for many inputs, computed batch by batch, on the CPU in float32.

    Args:
        forward: A module in evaluation mode, or a method of one.
        inputs: One row per cloud. [M, ...]
        batch_size: Rows per step.
        device: Where the module lives.
        title: Of a progress bar, or None for none.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    bar = tqdm(inputs.split(batch_size), desc=title, unit="batch", disable=title is None, leave=False)
    return torch.cat([forward(chunk.to(device)).float().cpu() for chunk in bar])


def voted_logits(
    model: nn.Module, clouds: Clouds, batch_size: int, vote: int = 1, seed: int = 0, title: str | None = None
) -> Tensor:
    """Mean of the logits over the passes of a vote; leaves the model in evaluation mode. [M, classes]"""
    model.eval()
    device = next(model.parameters()).device
    total = sum(forward_all(model, points, batch_size, device, title) for points in views(clouds, vote, seed))
    return total / vote
