"""What GAPrompt puts before the groups: a learned shift of the points, learned points, and a code of the shape."""

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointpeft.backbones.context import Context
from pointpeft.methods.base import factory_kwargs
from pointpeft.ops import furthest_point_sample, gather, interpolate, knn

if TYPE_CHECKING:
    from pointpeft.methods.prompts.gaprompt import GAPrompt

FREQUENCIES = (1.0, 2.0, 4.0, 8.0)
POINT_WIDTH = 3 * (1 + 2 * len(FREQUENCIES))  # of a point's sines and cosines
SHAPE_WIDTH = 8  # of a centre of the second level, whose features in a row are the shape
SHAPE_RANK = 16
PROPAGATED_FROM = 32  # centres that a point interpolates
PROPAGATION_EPS = 1e-4
SHAPE = "gaprompt.shape"


def waves(xyz: Tensor) -> Tensor:
    """[x, sin x, cos x, sin 2x, cos 2x, ...]. [B, N, 3] -> [B, N, 27]"""
    return torch.cat([xyz, *(wave(f * xyz) for f in FREQUENCIES for wave in (torch.sin, torch.cos))], -1)


def kaiming(layers: nn.Module, bias_std: float = 0.0) -> None:
    """Initial values of linear maps as published."""
    for layer in layers.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5))
            nn.init.normal_(layer.bias, std=bias_std)


class Abstraction(nn.Module):
    """The maximum over a neighbourhood of what three layers ReLU(BN(W f)) make of its points' features."""

    def __init__(self, widths: tuple[int, ...], factory: dict[str, Any]):
        super().__init__()
        pairs = list(pairwise(widths))
        self.convs = nn.ModuleList(nn.Conv2d(before, after, 1, **factory) for before, after in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(after, **factory) for _, after in pairs)

    def forward(self, features: Tensor, idx: Tensor) -> Tensor:
        """Features [B, N, C] and neighbourhoods int64 [B, G, S] -> [B, G, C']"""
        x = gather(features, idx).permute(0, 3, 2, 1)  # [B, C, S, G]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return x.amax(2).transpose(1, 2)


class Propagation(nn.Module):
    """Two layers ReLU(BN(W [f ; f'])) on a point's features and those interpolated from centres."""

    def __init__(self, widths: tuple[int, ...], factory: dict[str, Any]):
        super().__init__()
        pairs = list(pairwise(widths))
        self.convs = nn.ModuleList(nn.Conv1d(before, after, 1, **factory) for before, after in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm1d(after, **factory) for _, after in pairs)

    def forward(self, xyz: Tensor, centers: Tensor, features: Tensor, at_centers: Tensor) -> Tensor:
        """Points [B, N, 3] with features [B, N, C], centres [B, G, 3] with features [B, G, C'] -> [B, N, C'']"""
        k = min(PROPAGATED_FROM, centers.shape[1])
        carried = interpolate(xyz, centers, at_centers, k, PROPAGATION_EPS)
        x = torch.cat([features, carried.to(features.dtype)], -1).transpose(1, 2)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return x.transpose(1, 2)


class ShiftNet(nn.Module):
    """x' = x + ε MLP(f) ⊙ x with features f of each point by two levels down and up, and the features of the second.

    The shift is a multiple of the coordinates: it is zero at the origin.
    """

    def __init__(self, method: "GAPrompt", config: Any, factory: dict[str, Any]):
        super().__init__()
        self.perturbation, self.min_sq_norm = method.perturbation, config.min_sq_norm
        self.sizes = ((config.num_groups, config.group_size), halves(config))
        self.abstraction1 = Abstraction((POINT_WIDTH, 64, 32, 64), factory)
        self.abstraction2 = Abstraction((64, 64, 32, SHAPE_WIDTH), factory)
        self.propagation1 = Propagation((POINT_WIDTH + 32, 32, 32), factory)
        self.propagation2 = Propagation((64 + SHAPE_WIDTH, 64, 32), factory)
        self.position = nn.Sequential(
            nn.Linear(32, 64, **factory), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 3, **factory)
        )
        kaiming(self.position)

    def forward(self, xyz: Tensor) -> tuple[Tensor, Tensor]:
        """[B, N, 3] -> shifted points [B, N, 3], and features of the second level in a row [B, 8 G / 2]"""
        features = waves(xyz)
        (first, first_idx), (second, second_idx) = self.neighborhoods(xyz)
        at_first = self.abstraction1(features, first_idx)
        at_second = self.abstraction2(at_first, second_idx)
        up = self.propagation2(first, second, at_first, at_second)
        up = self.propagation1(xyz, first, features, up)
        return xyz + self.position(up) * self.perturbation * xyz, at_second.flatten(1)

    def neighborhoods(self, xyz: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Centres [B, G, 3] and their neighbours' indices int64 [B, G, S], of the points and of the first centres."""
        levels = []
        for groups, size in self.sizes:
            idx, centers = second_level(xyz, groups, size, self.min_sq_norm)[:2]
            levels.append((centers, idx))
            xyz = centers
        return levels


def halves(config: Any) -> tuple[int, int]:
    """Centres of the second level and their neighbours: half as many as a backbone's, at least one."""
    return max(1, config.num_groups // 2), max(1, config.group_size // 2)


def second_level(xyz: Tensor, groups: int, size: int, min_sq_norm: float) -> tuple[Tensor, Tensor, Tensor]:
    """Farthest points of a cloud and their neighbourhoods.

    Args:
        xyz: [B, N, 3]
        groups: G.
        size: S, at most N.
        min_sq_norm: As in `furthest_point_sample`.

    Returns:
        Neighbours int64 [B, G, S], centres [B, G, 3], and which points they are, int64 [B, G].
    """
    where = furthest_point_sample(xyz.detach(), groups, min_sq_norm=min_sq_norm)
    centers = gather(xyz, where)
    return knn(centers.detach(), xyz.detach(), size)[1], centers, where


class CloudPrompts(nn.Module):
    """Shared by all blocks: the shifted cloud with its learned points, the code of the shape, the prompts' places."""

    def __init__(self, method: "GAPrompt", backbone: Any):
        super().__init__()
        config, factory = backbone.config, factory_kwargs(backbone)
        self.factor = method.point_factor
        self.points = nn.Parameter(torch.empty(1, method.point_prompts, 3, **factory))
        nn.init.uniform_(self.points, -method.point_scale, method.point_scale)
        self.shift = ShiftNet(method, config, factory)
        self.shape = nn.Sequential(
            nn.Linear(SHAPE_WIDTH * halves(config)[0], SHAPE_RANK, **factory),
            nn.GELU(),
            nn.Dropout(0.25),
            nn.Linear(SHAPE_RANK, config.width, **factory),
        )
        kaiming(self.shape)
        self.prompt_xyz = nn.Parameter(torch.empty(method.num_prompts, 3, **factory))
        nn.init.trunc_normal_(self.prompt_xyz, std=0.06)
        self._pos_embed = (backbone.pos_embed,)  # in a tuple, so that its parameters have one name only

    def forward(self, xyz: Tensor, ctx: Context) -> Tensor:
        """[B, N, 3] -> [B, N + P, 3]; leaves the shape's code [B, 1, C] in the context."""
        shifted, features = self.shift(xyz)
        ctx.cache[SHAPE] = self.shape(features)[:, None]
        return torch.cat([shifted, (self.factor * self.points).expand(xyz.shape[0], -1, -1)], 1)

    def prompt_pos(self) -> Tensor:
        """Positions of the token prompts, at learned places. [1, P, C]"""
        return self._pos_embed[0](self.prompt_xyz[None])
