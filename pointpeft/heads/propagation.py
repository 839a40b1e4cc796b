"""Features carried from few points to many, and the layers of point-wise heads."""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointpeft.backbones.plain import is_plain
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
        factory = {"device": device, "dtype": dtype}
        self.num_categories = num_categories
        self.convs: Any = convolutions((num_categories + 3 + width, *hidden), factory)
        self.norms: Any = norms(hidden, factory)

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
        nearest = min(NEAREST, support.shape[1])
        if not is_plain(first, nn.Conv1d):
            x = torch.cat([points, interpolate(points, support, features, nearest)], -1)
            if self.num_categories:
                assert category is not None
                x = torch.cat([one_hot(category, self.num_categories, x)[:, None].expand(-1, x.shape[1], -1), x], -1)
            return activate(self.norms[1], project(second, activate(self.norms[0], project(first, x))))
        of_category, of_point, of_features = first.weight.squeeze(-1).split(
            [self.num_categories, 3, features.shape[-1]], 1
        )
        x = interpolate(points, support, F.linear(features, of_features), nearest)
        x = x + F.linear(points, of_point, first.bias)
        if self.num_categories:
            assert category is not None
            x = x + F.embedding(category, of_category.T)[:, None]
        return activate(self.norms[1], project(second, activate(self.norms[0], x)))


def convolutions(widths: tuple[int, ...], factory: dict[str, Any]) -> nn.ModuleList:
    """1x1 convolutions, for the shapes of published files; they are computed as matrix products."""
    return nn.ModuleList(nn.Conv1d(a, b, 1, **factory) for a, b in pairwise(widths))


def norms(widths: tuple[int, ...], factory: dict[str, Any]) -> nn.ModuleList:
    """A BatchNorm for each width."""
    return nn.ModuleList(nn.BatchNorm1d(width, **factory) for width in widths)


def project(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """The convolution at every point. [B, N, C] -> [B, N, C']"""
    if is_plain(conv, nn.Conv1d):
        return F.linear(x, conv.weight.squeeze(-1), conv.bias)
    return conv(x.transpose(1, 2)).transpose(1, 2)


def one_hot(category: Tensor, count: int, like: Tensor) -> Tensor:
    """Rows of the identity in the type of `like`. int64 [B] -> [B, count]"""
    return F.one_hot(category, count).to(like.dtype)


def activate(norm: nn.Module, x: Tensor) -> Tensor:
    """ReLU(BN(x)) over the last dimension. [B, N, C] -> [B, N, C]"""
    if isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return F.relu(norm(x.flatten(0, -2)).view_as(x))
    return F.relu(norm(x.transpose(1, 2)).transpose(1, 2))  # another norm may tell a cloud from the next one
