"""`chamfer_dist` of the Point-BERT and Point-MAE repositories: Chamfer losses as modules."""

from torch import Tensor, nn

from pointpeft import ops


class ChamferFunction:
    """Squared distances from each point to the nearest of the other cloud, both ways, as the extension's function."""

    @staticmethod
    def apply(xyz1: Tensor, xyz2: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, 3) and (B, M, 3) to (B, N) and (B, M), differentiable in both."""
        return ops.knn(xyz1, xyz2, 1)[0].squeeze(-1), ops.knn(xyz2, xyz1, 1)[0].squeeze(-1)


def _without_zeros(xyz1: Tensor, xyz2: Tensor, ignore_zeros: bool) -> tuple[Tensor, Tensor]:
    """Drops points at the origin, which pad a cloud, as the published modules do: for a batch of one only."""
    if xyz1.shape[0] == 1 and ignore_zeros:
        xyz1, xyz2 = (xyz[xyz.sum(2).ne(0)].unsqueeze(0) for xyz in (xyz1, xyz2))
    return xyz1, xyz2


class _Chamfer(nn.Module):
    def __init__(self, ignore_zeros: bool = False):
        super().__init__()
        self.ignore_zeros = ignore_zeros


class ChamferDistanceL2(_Chamfer):
    """Mean squared distance to the nearest point, both ways added."""

    def forward(self, xyz1: Tensor, xyz2: Tensor) -> Tensor:
        """(B, N, 3) and (B, M, 3) to a scalar."""
        return ops.chamfer_distance(*_without_zeros(xyz1, xyz2, self.ignore_zeros), norm=2)


class ChamferDistanceL2_split(_Chamfer):
    """Both mean squared distances, apart."""

    def forward(self, xyz1: Tensor, xyz2: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, 3) and (B, M, 3) to two scalars."""
        first, second = ChamferFunction.apply(*_without_zeros(xyz1, xyz2, self.ignore_zeros))
        return first.mean(), second.mean()


class ChamferDistanceL1(_Chamfer):
    """Mean distance to the nearest point, averaged over both ways; coincident points give no gradient, not NaN."""

    def forward(self, xyz1: Tensor, xyz2: Tensor) -> Tensor:
        """(B, N, 3) and (B, M, 3) to a scalar."""
        return ops.chamfer_distance(*_without_zeros(xyz1, xyz2, self.ignore_zeros), norm=1)
