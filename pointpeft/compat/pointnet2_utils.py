"""`pointnet2_ops.pointnet2_utils`: channel-first features, int32 indices, FPS that skips points near the origin."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointpeft import ops
from pointpeft.compat._search import first_within

ORIGIN_RULE = 1e-3  # points with ‖p‖² <= this are never selected


def furthest_point_sample(xyz: Tensor, npoint: int) -> Tensor:
    """Indices (B, npoint) int32 of farthest points of `xyz` (B, N, 3), from index 0.

    Beyond N picks the lowest index that may be selected is picked again, as it is whenever all distances are zero.
    """
    count = min(npoint, xyz.shape[1])
    idx = ops.furthest_point_sample(xyz, count, min_sq_norm=ORIGIN_RULE)
    if count < npoint:
        p = xyz.detach() if xyz.dtype == torch.float64 else xyz.detach().float()
        may = p[..., 0] * p[..., 0] + p[..., 1] * p[..., 1] + p[..., 2] * p[..., 2] > ORIGIN_RULE
        again = may.int().argmax(1)  # the first; 0 where there is none
        idx = torch.cat([idx, again[:, None].expand(-1, npoint - count)], 1)
    return idx.int()


def gather_operation(features: Tensor, idx: Tensor) -> Tensor:
    """`features` (B, C, N) at `idx` (B, npoint): (B, C, npoint)."""
    return ops.gather(features.transpose(1, 2), idx.long()).transpose(1, 2).contiguous()


def grouping_operation(features: Tensor, idx: Tensor) -> Tensor:
    """`features` (B, C, N) at `idx` (B, npoint, nsample): (B, C, npoint, nsample)."""
    return ops.gather(features.transpose(1, 2), idx.long()).permute(0, 3, 1, 2).contiguous()


def three_nn(unknown: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (not squared) and int32 indices (B, n, 3) of the three nearest of `known` (B, m, 3).

    Where m < 3 the missing ones are index 0 at an infinite distance. Not differentiable, as there.
    """
    count = min(3, known.shape[1])
    sq_distance, idx = ops.knn(unknown.detach(), known.detach(), count)
    if count < 3:
        sq_distance = F.pad(sq_distance, (0, 3 - count), value=torch.inf)
        idx = F.pad(idx, (0, 3 - count))
    return sq_distance.sqrt(), idx.int()


def three_interpolate(features: Tensor, idx: Tensor, weight: Tensor) -> Tensor:
    """`features` (B, c, m) at `idx` (B, n, 3), summed with `weight` (B, n, 3): (B, c, n).

    Differentiable in the features alone: pointnet2_ops gives the weights a gradient of zero.
    """
    return (grouping_operation(features, idx) * weight.detach().unsqueeze(1)).sum(-1)


def ball_query(radius: float, nsample: int, xyz: Tensor, new_xyz: Tensor) -> Tensor:
    """The first `nsample` points of `xyz` (B, N, 3) within `radius` of each of `new_xyz` (B, npoint, 3), int32.

    Where fewer are found the first found one fills; where none is, index 0 does. `nsample` may exceed N.
    """
    return first_within(new_xyz, xyz, radius, nsample)[0].int()


class QueryAndGroup(nn.Module):
    """Groups (B, 3 + C, npoint, nsample) by ball query: centred coordinates before the features."""

    def __init__(self, radius: float, nsample: int, use_xyz: bool = True):
        super().__init__()
        self.radius, self.nsample, self.use_xyz = radius, nsample, use_xyz

    def forward(self, xyz: Tensor, new_xyz: Tensor, features: Tensor | None = None) -> Tensor:
        """(B, N, 3), (B, npoint, 3) and (B, C, N) to the groups."""
        idx = ball_query(self.radius, self.nsample, xyz, new_xyz)
        grouped_xyz = grouping_operation(xyz.transpose(1, 2), idx) - new_xyz.transpose(1, 2).unsqueeze(-1)
        if features is None:
            if not self.use_xyz:
                raise ValueError("features must be given where use_xyz is False")
            return grouped_xyz
        grouped = grouping_operation(features, idx)
        return torch.cat([grouped_xyz, grouped], dim=1) if self.use_xyz else grouped


class GroupAll(nn.Module):
    """One group of all points: (B, 3 + C, 1, N)."""

    def __init__(self, use_xyz: bool = True):
        super().__init__()
        self.use_xyz = use_xyz

    def forward(self, xyz: Tensor, new_xyz: Tensor | None, features: Tensor | None = None) -> Tensor:
        """(B, N, 3) and (B, C, N) to the group; `new_xyz` is there for the signature alone."""
        grouped_xyz = xyz.transpose(1, 2).unsqueeze(2)
        if features is None:
            return grouped_xyz
        grouped = features.unsqueeze(2)
        return torch.cat([grouped_xyz, grouped], dim=1) if self.use_xyz else grouped
