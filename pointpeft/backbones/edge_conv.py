"""EdgeConv: a 1x1 convolution of the edges from each patch to its neighbours, and the maximum over them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointpeft.backbones.patch_embed import is_row_norm, track_statistics
from pointpeft.backbones.plain import is_plain
from pointpeft.ops import aggregate_neighbors, gather

LEAK = 0.2  # slope of the LeakyReLUs, as published


def conv(norm: nn.BatchNorm1d, in_width: int, dims: int, factory: dict[str, Any]) -> nn.Sequential:
    """A 1x1 convolution without bias and its norm, under the names and shapes of published files."""
    convolution_type = nn.Conv2d if dims == 2 else nn.Conv1d
    return nn.Sequential(convolution_type(in_width, norm.num_features, 1, bias=False, **factory), norm)


def activate(norm: nn.Module, x: Tensor) -> Tensor:
    """LeakyReLU(BN(x)) over the last dimension. [..., C] -> [..., C]"""
    return F.leaky_relu(norm(x.flatten(0, -2)).view_as(x), LEAK)


def project(layer: nn.Sequential, x: Tensor) -> Tensor:
    """The convolution, its norm and LeakyReLU, token by token. [B, G, C] -> [B, G, C']"""
    if not is_plain(layer[0], nn.Conv1d):
        return activate(layer[1], layer[0](x.transpose(1, 2)).transpose(1, 2))
    weight, norm = _parts(layer)
    return activate(norm, F.linear(x, weight))


def _parts(layer: nn.Sequential) -> tuple[Tensor, Any]:
    """The convolution's weight as a matrix, [C', C], and the norm; torch knows no types of the parts of a container."""
    convolution: Any = layer[0]
    return convolution.weight.flatten(1), layer[1]


def edge_statistics(offset: Tensor, center: Tensor, idx: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of offset_j + center_i over all edges from i to its neighbours j, without their values.

    Args:
        offset: [B, G, C]
        center: [B, G, C]
        idx: Neighbours. int64, [B, G, K]

    Returns:
        Both at least in float32. [C] each
    """
    wide = torch.promote_types(offset.dtype, torch.float32)
    offset, center = offset.to(wide), center.to(wide)
    edges, k = idx.numel(), idx.shape[2]
    times = torch.zeros(idx.shape[:2], dtype=wide, device=idx.device)  # how often a patch is a neighbour
    times = times.scatter_add_(1, idx.flatten(1), times.new_ones(1).expand(idx.shape[0], edges // idx.shape[0]))
    mean_offset, mean_center = (times[..., None] * offset).sum((0, 1)) / edges, center.mean((0, 1))
    # Around their means, so that the squares are those of differences; the gradient by the means is zero there.
    offset, center = offset - mean_offset.detach(), center - mean_center.detach()
    mixed = center * aggregate_neighbors(offset, idx, "sum")
    squares = times[..., None] * offset.square() + 2 * mixed + k * center.square()
    return mean_offset + mean_center, squares.sum((0, 1)) / edges


def edge_conv(layer: nn.Sequential, x: Tensor, idx: Tensor) -> Tensor:
    """max_j LeakyReLU(BN(W [x_j - x_i ; x_i])) over the neighbours j of each patch i.

    Args:
        layer: Made by `conv` with 2C inputs and two dimensions.
        x: Patch tokens. [B, G, C]
        idx: Neighbours, the patch itself among them. int64, [B, G, K]

    Returns:
        [B, G, C']

    Source: Wang et al., "Dynamic graph CNN for learning on point clouds", 2019, Eqs. 7-8.
    """
    if not is_plain(layer[0], nn.Conv2d):
        center = x[:, :, None].expand(-1, -1, idx.shape[2], -1)
        edges = torch.cat([gather(x, idx) - center, center], -1).permute(0, 3, 1, 2)
        return activate(layer[1], layer[0](edges).permute(0, 2, 3, 1)).amax(2)
    weight, norm = _parts(layer)
    to_offset, to_center = weight.chunk(2, 1)  # [C, C] each
    # W [x_j - x_i ; x_i] = W' x_j + (W'' - W') x_i: two products per patch instead of one per edge.
    offset, center = F.linear(x, to_offset), F.linear(x, to_center - to_offset)
    synced = norm.training and type(norm) is not nn.BatchNorm1d  # it measures the edges of other processes too
    if synced or not is_row_norm(norm):
        return activate(norm, gather(offset, idx) + center[:, :, None]).amax(2)
    # LeakyReLU(BN(.)) rises where the norm's weight is positive and falls where it is negative, so that the maximum
    # over neighbours passes it: no tensor has an edge's entries.
    sign = torch.where(norm.weight < 0, -1.0, 1.0).to(offset.dtype)
    top = sign * aggregate_neighbors(sign * offset, idx, "max") + center
    statistics: Any = norm  # which are tracked
    mean, var = statistics.running_mean, statistics.running_var
    if norm.training:
        mean, var = edge_statistics(offset, center, idx)
        track_statistics(norm, mean.detach(), var.detach(), idx.numel())
    scale = norm.weight * (var + norm.eps).rsqrt()
    return F.leaky_relu((top - mean) * scale + norm.bias, LEAK).to(offset.dtype)
