"""An exponential moving average of the trained weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@torch.no_grad()
def follow(average: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    """One step: average = decay · average + (1 - decay) · weights; starts as a copy of the weights.

    Args:
        average: By name; empty before the first step. Changed in place.
        model: Its trainable parameters are averaged; buffers, which are averages already, are not.
        decay: 0 keeps the last weights, close to 1 remembers long.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            if name not in average:
                average[name] = parameter.detach().clone()
            else:
                average[name].lerp_(parameter.detach(), 1 - decay)


@contextmanager
def averaged(average: dict[str, Tensor], model: nn.Module) -> Iterator[None]:
    """Puts the average into the model, and the model's own weights back at the end; nothing where it is empty."""
    trained = {name: p.detach().clone() for name, p in model.named_parameters() if name in average}
    load(average, model)
    try:
        yield
    finally:
        load(trained, model)


@torch.no_grad()
def load(weights: dict[str, Tensor], model: nn.Module) -> None:
    """Copies weights into the parameters of these names."""
    for name, parameter in model.named_parameters():
        if name in weights:
            parameter.copy_(weights[name])
