"""Stratified splits of a labelled set."""

import torch
from torch import Tensor


def split_validation(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Holds out a share of every class, at random.

    The part as a whole is `fraction` of all clouds, rounded, as far as every class can keep one cloud for training.
    A class gives its share rounded down; the clouds still missing come from the classes with the largest rests.

    Args:
        labels: Class of every cloud. [M]
        fraction: Part to hold out, between 0 and 1, both excluded.
        seed: Seed of the draw.

    Returns:
        Positions to train on and positions held out, int64, ascending, disjoint, together all of 0 .. M-1.

    Raises:
        ValueError: The fraction is out of bounds or the labels are not one-dimensional.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be between 0 and 1, got {fraction}")
    labels = torch.as_tensor(labels)
    if labels.dim() != 1:
        raise ValueError(f"labels must have one dimension, got {list(labels.shape)}")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    members = [order[labels[order] == label] for label in labels.unique()]
    exact = [fraction * len(clouds) for clouds in members]
    counts = [min(int(share), len(clouds) - 1) for share, clouds in zip(exact, members, strict=True)]
    missing = round(fraction * len(labels)) - sum(counts)
    # Sorting is stable, so among equal rests the order of this draw decides and no class is favoured by its number.
    turn = torch.randperm(len(members), generator=generator).tolist()
    for i in sorted(turn, key=lambda i: counts[i] - exact[i]):
        if missing > 0 and counts[i] < len(members[i]) - 1:
            counts[i] += 1
            missing -= 1
    held = [clouds[:count] for clouds, count in zip(members, counts, strict=True)]
    training = [clouds[count:] for clouds, count in zip(members, counts, strict=True)]
    none = torch.empty(0, dtype=torch.int64)
    return torch.cat([none, *training]).sort().values, torch.cat([none, *held]).sort().values
