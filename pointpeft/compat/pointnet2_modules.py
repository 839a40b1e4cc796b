"""`pointnet2_ops.pointnet2_modules`: set abstraction and feature propagation, with the published parameter names."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointpeft.compat import pointnet2_utils


def build_shared_mlp(mlp_spec: list[int], bn: bool = True) -> nn.Sequential:
    """Convolutions of kernel 1 with optional batch norm and ReLU, from channel `mlp_spec[0]` through to the last."""
    layers: list[nn.Module] = []
    for i in range(1, len(mlp_spec)):
        layers.append(nn.Conv2d(mlp_spec[i - 1], mlp_spec[i], kernel_size=1, bias=not bn))
        if bn:
            layers.append(nn.BatchNorm2d(mlp_spec[i]))
        layers.append(nn.ReLU(True))
    return nn.Sequential(*layers)


class _PointnetSAModuleBase(nn.Module):
    def __init__(self):
        super().__init__()
        self.npoint: int | None = None
        self.groupers: nn.ModuleList
        self.mlps: nn.ModuleList

    def forward(self, xyz: Tensor, features: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """(B, N, 3) and (B, C, N) to the samples (B, npoint, 3) and their features (B, Σ C', npoint)."""
        new_xyz = None
        if self.npoint is not None:
            idx = pointnet2_utils.furthest_point_sample(xyz, self.npoint)
            new_xyz = (
                pointnet2_utils.gather_operation(xyz.transpose(1, 2).contiguous(), idx).transpose(1, 2).contiguous()
            )
        pooled = []
        for grouper, mlp in zip(self.groupers, self.mlps, strict=True):
            grouped = mlp(grouper(xyz, new_xyz, features))
            pooled.append(F.max_pool2d(grouped, kernel_size=[1, grouped.size(3)]).squeeze(-1))
        return new_xyz, torch.cat(pooled, dim=1)


class PointnetSAModuleMSG(_PointnetSAModuleBase):
    """Set abstraction with several radii."""

    def __init__(
        self,
        npoint: int | None,
        radii: list[float | None],
        nsamples: list[int | None],
        mlps: list[list[int]],
        bn: bool = True,
        use_xyz: bool = True,
    ):
        super().__init__()
        if not len(radii) == len(nsamples) == len(mlps):
            raise ValueError(
                f"radii, nsamples and mlps must be as many, got {len(radii)}, {len(nsamples)}, {len(mlps)}"
            )
        self.npoint = npoint
        self.groupers, self.mlps = nn.ModuleList(), nn.ModuleList()
        for radius, nsample, spec in zip(radii, nsamples, mlps, strict=True):
            self.groupers.append(
                pointnet2_utils.GroupAll(use_xyz)
                if npoint is None
                else pointnet2_utils.QueryAndGroup(cast("float", radius), cast("int", nsample), use_xyz=use_xyz)
            )
            self.mlps.append(build_shared_mlp([spec[0] + (3 if use_xyz else 0), *spec[1:]], bn))


class PointnetSAModule(PointnetSAModuleMSG):
    """Set abstraction with one radius; of all points where `npoint` is None."""

    def __init__(
        self,
        mlp: list[int],
        npoint: int | None = None,
        radius: float | None = None,
        nsample: int | None = None,
        bn: bool = True,
        use_xyz: bool = True,
    ):
        super().__init__(npoint, [radius], [nsample], [mlp], bn, use_xyz)


class PointnetFPModule(nn.Module):
    """Carries features from a known set to an unknown one: the three nearest, weighted by inverse distance."""

    def __init__(self, mlp: list[int], bn: bool = True):
        super().__init__()
        self.mlp = build_shared_mlp(mlp, bn=bn)

    def forward(
        self, unknown: Tensor, known: Tensor | None, unknow_feats: Tensor | None, known_feats: Tensor
    ) -> Tensor:
        """(B, n, 3), (B, m, 3), (B, C1, n), (B, C2, m) to (B, C', n)."""
        if known is not None:
            distance, idx = pointnet2_utils.three_nn(unknown, known)
            weight = 1.0 / (distance + 1e-8)
            weight = weight / weight.sum(2, keepdim=True)
            carried = pointnet2_utils.three_interpolate(known_feats, idx, weight)
        else:
            carried = known_feats.expand(*known_feats.shape[:2], unknown.shape[1])
        if unknow_feats is not None:
            carried = torch.cat([carried, unknow_feats], dim=1)
        return self.mlp(carried.unsqueeze(-1)).squeeze(-1)
