"""Features carried from few points to many, and the layers of point-wise heads."""

from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pointpeft.ops import interpolate

LEAK = 0.2  # slope of the LeakyReLUs, as published
NEAREST = 3  # points that a feature is interpolated from, as published


class Propagation(nn.Module):
    """MLP([category ; p ; interpolate(p, support, features)]) at every point p, of 1x1 convolutions, norms and ReLU.

    The interpolation's weights sum to one, so that it commutes with the first layer, whose product is made once per
    support point; the category's part is the same summand for all points of a cloud.

    Args:
        width: C of the carried features.
        hidden: Channels after both layers.
        num_categories: Kinds of clouds, of which each names its own; 0 where the layer reads none.

    Source: Qi et al., "PointNet++", NeurIPS 2017, as the dense heads of Point-BERT and Point-MAE use it.
    """

    def __init__(
        self, width: int, hidden: tuple[int, int], num_categories: int = 0, *, device: Any = None, dtype: Any = None
    ):
        super().__init__()
        at = {"device": device, "dtype": dtype}
        self.num_categories = num_categories
        self.convs: Any = convolutions((num_categories + 3 + width, *hidden), at)
        self.norms: Any = norms(hidden, at)

    def forward(self, points: Tensor, support: Tensor, features: Tensor, category: Tensor | None = None) -> Tensor:
        """Carries features to points.

        Args:
            points: Where to. [B, N, 3]
            support: Where they are known. [B, M, 3]
            features: [B, M, C]
            category: Index of each cloud's where the layer reads one. int64, [B]

        Returns:
            [B, N, hidden[1]]
        """
        first, second = self.convs
        of_category, of_point, of_features = first.weight.squeeze(-1).split(
            [self.num_categories, 3, features.shape[-1]], 1
        )
        x = interpolate(points, support, F.linear(features, of_features), min(NEAREST, support.shape[1]))
        x = x + F.linear(points, of_point, first.bias)
        if self.num_categories:
            assert category is not None
            x = x + F.embedding(category, of_category.T)[:, None]
        return activate(self.norms[1], project(second, activate(self.norms[0], x)))


def convolutions(widths: tuple[int, ...], at: dict[str, Any]) -> nn.ModuleList:
    """1x1 convolutions, for the shapes of published files; they are computed as matrix products."""
    return nn.ModuleList(nn.Conv1d(a, b, 1, **at) for a, b in pairwise(widths))


def norms(widths: tuple[int, ...], at: dict[str, Any]) -> nn.ModuleList:
    """A BatchNorm for each width."""
    return nn.ModuleList(nn.BatchNorm1d(width, **at) for width in widths)


def project(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """[..., C] -> [..., C']"""
    return F.linear(x, conv.weight.squeeze(-1), conv.bias)


def activate(norm: nn.Module, x: Tensor) -> Tensor:
    """ReLU(BN(x)) over the last dimension. [..., C] -> [..., C]"""
    return F.relu(norm(x.flatten(0, -2)).view_as(x))
