"""Which clouds show the same shape, up to a re-sampling of its surface."""

import torch
from torch import Tensor

from pointpeft.data.transforms import normalize

# Two samples of one surface differ by a ratio of about 1. Measured within the classes of the furniture, on 2048 points:
# one mesh in two colours 1.01, doors and windows that differ in mouldings 1.01 to 1.2; two makes of car from 1.23,
# two three-seat sofas from 1.29.
NEAR_DUPLICATE_RATIO = 1.2


def chamfer_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean distance, not squared, from each point to the other cloud's nearest, averaged over the two directions.

    Args:
        a: Coordinates, float. [B, N, 3]
        b: Coordinates, float. [B, M, 3]

    Returns:
        The distances. [B]
    """
    distances = torch.cdist(a, b)
    return (distances.amin(2).mean(1) + distances.amin(1).mean(1)) / 2


def resampling_ratio(clouds: Tensor) -> Tensor:
    """How far two clouds are apart, in units of how far two samples of one of them are apart.

    Each cloud is normalised and halved; the Chamfer distance between the first half of one and the second half of the
    other is divided by the mean of the two distances within the clouds. The smaller value of the cloud and its mirror
    image counts. A value near 1 says: no farther than a new sample of the same surface.

    Args:
        clouds: Coordinates in random order, float. [B, N, 3]

    Returns:
        The ratios, symmetric, 1 on the diagonal. [B, B]
    """
    clouds = normalize(clouds)
    half = clouds.shape[1] // 2
    first, second = clouds[:, :half], clouds[:, half : 2 * half]
    resampled = chamfer_distance(first, second)
    mirror = torch.tensor([-1.0, 1.0, 1.0], dtype=clouds.dtype)
    ratios = torch.ones(len(clouds), len(clouds), dtype=clouds.dtype)
    for i in range(len(clouds) - 1):
        others = second[i + 1 :]
        repeated = first[i : i + 1].expand(len(others), -1, -1)
        apart = torch.minimum(chamfer_distance(repeated, others), chamfer_distance(repeated * mirror, others))
        ratios[i, i + 1 :] = ratios[i + 1 :, i] = apart / ((resampled[i] + resampled[i + 1 :]) / 2)
    return ratios


def connected_groups(linked: Tensor) -> list[int]:
    """Numbers the connected components of items and links.

    Args:
        linked: Which pairs are linked, bool, symmetric. [B, B]

    Returns:
        The group of every item; a group bears the index of its first item. [B]
    """
    groups = list(range(len(linked)))
    for i, j in linked.nonzero().tolist():
        old, new = max(groups[i], groups[j]), min(groups[i], groups[j])
        groups = [new if group == old else group for group in groups]
    return groups
