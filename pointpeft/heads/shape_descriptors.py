"""What a cloud's geometry says by itself: histograms and ratios that need no training."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pointpeft.ops import sample_and_group

PAIRS = 4096  # pairs and triples of points whose distances and angles are counted
PATCHES, PATCH_SIZE = 64, 32  # neighbourhoods whose spread is measured
NUM_DESCRIPTORS = 24 + 16 + 12 + 16 + 12 + 3 + 2 + 2 + 3 + 3 + 1 + 3 + 4 * 8 + 2


def shape_descriptors(xyz: Tensor) -> Tensor:
    """Describes clouds by their geometry, independent of their size, their place and the order of their axes x and z.

    Side by side stand: the distances and angles among random points (the D2 and A3 distributions), distances from the
    centre, heights, distances from the vertical axis, the eigenvalues of the covariance and their ratios, extents with
    and without the outermost twentieth, asymmetry and mean height, and how linear, planar, scattered and upright
    neighbourhoods are.

    Args:
        xyz: Coordinates, y up. [B, N, 3]

    Returns:
        float32. [B, NUM_DESCRIPTORS]

    Source: Osada et al., "Shape distributions", ACM Transactions on Graphics 2002 (D2, A3); Demantké et al.,
        "Dimensionality based scale selection in 3D lidar point clouds", 2011 (linearity, planarity, scattering).
    """
    x = xyz.float()
    x = x - x.mean(1, keepdim=True)
    x = x / x.norm(dim=2).amax(1).clamp_min(torch.finfo(x.dtype).tiny)[:, None, None]
    first, second, third = (x[:, places] for places in _triples(x.shape[1], x.device))
    to_first, to_third = first - second, third - second
    norms = to_first.norm(dim=2) * to_third.norm(dim=2)
    angle = (to_first * to_third).sum(2) / norms.clamp_min(1e-12)
    height, across = x[..., 1], x[..., 0::2]
    radius = across.norm(dim=2)
    spread = _eigenvalues(_covariance(x)).sqrt()
    inner = _inner_extent(x).sort(1).values
    horizontal = _horizontal_spread(across)
    extent = x.amax(1) - x.amin(1)
    parts = [
        _histogram(to_first.norm(dim=2), 24, 0.0, 2.0),
        _histogram(x.norm(dim=2), 16, 0.0, 1.0),
        _histogram(angle, 12, -1.0, 1.0),
        _histogram(height, 16, -1.0, 1.0),
        _histogram(radius, 12, 0.0, 1.0),
        spread,
        spread[:, 1:] / spread[:, :1].clamp_min(1e-6),
        horizontal,
        inner,
        torch.cat([extent[:, 1:2], extent[:, 0::2].amax(1, keepdim=True), extent[:, 0::2].amin(1, keepdim=True)], 1),
        height.pow(3).mean(1, keepdim=True),
        torch.stack([height.std(1, correction=0), height.abs().mean(1), radius.mean(1)], 1),
        _neighbourhoods(x),
    ]
    return torch.cat(parts, 1)


def _triples(count: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Places of `PAIRS` triples of points, spread by multiplication modulo primes: always the same. int64, each [P]"""
    i = torch.arange(PAIRS, device=device)
    return i % count, (i * 7919 + 1) % 104729 % count, (i * 15485 + 2) % 65537 % count


def _histogram(values: Tensor, bins: int, low: float, high: float) -> Tensor:
    """Shares of values per bin; each value is divided between the two nearest bins. [B, P] -> [B, bins]"""
    places = ((values - low) / (high - low) * bins - 0.5).clamp(0, bins - 1)
    return torch.stack([F.relu(1 - (places - number).abs()).mean(1) for number in range(bins)], 1)


def _covariance(x: Tensor) -> Tensor:
    """Of the points. [..., N, 3] -> [..., 3, 3]"""
    x = x - x.mean(-2, keepdim=True)
    return x.transpose(-1, -2) @ x / x.shape[-2]


def _eigenvalues(matrix: Tensor) -> Tensor:
    """Of symmetric 3x3 matrices without negative eigenvalues, descending, in closed form: export knows no solver.

    [..., 3, 3] -> [..., 3]
    """
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    mean = diagonal.mean(-1)
    centred = diagonal - mean[..., None]
    off = torch.stack([matrix[..., 0, 1], matrix[..., 0, 2], matrix[..., 1, 2]], -1)
    scale = ((centred.square().sum(-1) + 2 * off.square().sum(-1)) / 6).sqrt().clamp_min(1e-12)
    a, b, c = (centred / scale[..., None]).unbind(-1)
    d, e, f = (off / scale[..., None]).unbind(-1)
    half_determinant = (a * (b * c - f * f) - d * (d * c - f * e) + e * (d * f - b * e)) / 2
    angle = half_determinant.clamp(-1, 1).acos() / 3
    largest = mean + 2 * scale * angle.cos()
    smallest = mean + 2 * scale * (angle + 2 * math.pi / 3).cos()
    return torch.stack([largest, 3 * mean - largest - smallest, smallest], -1).clamp_min(0)


def _horizontal_spread(across: Tensor) -> Tensor:
    """Standard deviations along the principal axes of the ground plane, the larger one first. [B, N, 2] -> [B, 2]"""
    across = across - across.mean(1, keepdim=True)
    xx, zz = across.square().mean(1).unbind(1)
    xz = across.prod(2).mean(1)
    half, root = (xx + zz) / 2, ((xx - zz).square() / 4 + xz.square()).sqrt()
    return torch.stack([half + root, half - root], 1).clamp_min(0).sqrt()


def _inner_extent(x: Tensor) -> Tensor:
    """Extents without the outermost twentieth of the points at each end. [B, N, 3] -> [B, 3]"""
    ordered, count = x.sort(1).values, x.shape[1]
    return ordered[:, count - 1 - count // 20] - ordered[:, count // 20]


def _neighbourhoods(x: Tensor) -> Tensor:
    """How linear, planar, scattered and upright neighbourhoods are, and how large. [B, N, 3] -> [B, 34]"""
    count = x.shape[1]
    patches = sample_and_group(x.contiguous(), min(PATCHES, count), min(PATCH_SIZE, count)).patches
    covariance = _covariance(patches)
    s1, s2, s3 = _eigenvalues(covariance).sqrt().unbind(-1)
    largest = s1.clamp_min(1e-9)
    upright = covariance[..., 1, 1] / covariance.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(1e-12)
    histograms = [
        _histogram((s1 - s2) / largest, 8, 0.0, 1.0),
        _histogram((s2 - s3) / largest, 8, 0.0, 1.0),
        _histogram(s3 / largest, 8, 0.0, 0.6),
        _histogram(upright, 8, 0.0, 1.0),
    ]
    return torch.cat([*histograms, s1.mean(1, keepdim=True), s1.std(1, correction=0, keepdim=True)], 1)
