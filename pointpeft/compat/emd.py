"""`emd` of MSN, CRN and PoinTr, and `extensions.emd` of Point-BERT and Point-MAE: earth mover's distances.

Two approximations go by that name: `emdModule` auctions the points of one cloud off to those of the other, and
`earth_mover_distance` shares mass out among near points, level by level.
"""

import sys

import torch
from torch import Tensor, nn

ROWS = 1024  # bidders whose distances to every point are in memory at once
EXACT = "donot_use_mm_for_euclid_dist"  # differences first: the other way loses the small distances that decide
MASS = 1e-9  # keeps the divisions by a mass of zero finite


def auction(xyz1: Tensor, xyz2: Tensor, eps: float, iters: int) -> Tensor:
    """Assigns each point of `xyz1` to one of `xyz2` by rounds of bidding.

    In every round each point without a partner bids for the one where distance plus price is least, by as much more
    than the second best as it is better, plus `eps`; the highest bid wins, of equal ones the lowest index, ousts who
    held the point, and becomes its price. In the last round every bid is granted, so that points may be shared then.
    Where no point is shared, the mean distance is within `eps` of the least possible.

    Args:
        xyz1: Bidders. [B, N, 3]
        xyz2: What they bid for. [B, N, 3]
        eps: Least raise of a price, in the unit of the coordinates, which are expected in [0, 1].
        iters: Rounds.

    Returns:
        Index into `xyz2` for each point of `xyz1`, int64. [B, N]

    Raises:
        ValueError: Clouds of different sizes, or an `eps` or `iters` out of range.

    Source: Bertsekas, "The auction algorithm", 1988; Liu et al., "Morphing and sampling network for dense point cloud
        completion", 2020.
    """
    if xyz1.dim() != 3 or xyz1.shape != xyz2.shape or xyz1.shape[-1] != 3 or xyz1.shape[1] == 0:
        raise ValueError(
            f"xyz1 and xyz2 must have one shape (B, N, 3) with N > 0, got {tuple(xyz1.shape)} and {tuple(xyz2.shape)}"
        )
    if not eps > 0:
        raise ValueError(f"eps must be greater than 0, got {eps}")
    if iters < 1:
        raise ValueError(f"iters must be at least 1, got {iters}")
    clouds = [_auction(a.detach().float(), b.detach().float(), eps, iters) for a, b in zip(xyz1, xyz2, strict=True)]
    return torch.stack(clouds) if clouds else torch.empty(xyz1.shape[:2], dtype=torch.int64, device=xyz1.device)


def _auction(a: Tensor, b: Tensor, eps: float, iters: int) -> Tensor:
    n = len(a)
    if n == 1:
        return torch.zeros(1, dtype=torch.int64, device=a.device)
    price = torch.zeros(n, device=a.device)
    held = torch.full((n,), -1, device=a.device)  # by a: which point of b
    holder = torch.full((n,), -1, device=a.device)  # of b: by which point of a
    for round_ in range(iters):
        bidders = (held < 0).nonzero().flatten()
        if not len(bidders):
            break
        best = [(-torch.cdist(a[rows], b, compute_mode=EXACT) - price).topk(2, 1) for rows in bidders.split(ROWS)]
        value, wish = (torch.cat(columns) for columns in zip(*best, strict=True))
        wish, raised = wish[:, 0], value[:, 0] - value[:, 1] + eps
        if round_ == iters - 1:
            held[bidders] = wish
            break
        highest = torch.zeros(n, device=a.device).scatter_reduce_(0, wish, raised, "amax")
        top = raised == highest[wish]
        winner = torch.full((n,), n, device=a.device).scatter_reduce_(0, wish[top], bidders[top], "amin")
        sold = (winner < n).nonzero().flatten()
        ousted = holder[sold]
        held[ousted[ousted >= 0]] = -1
        holder[sold], held[winner[sold]] = winner[sold], sold
        price[sold] += highest[sold]
    return held


class emdFunction:
    """`emdModule` as the function that repositories call directly."""

    @staticmethod
    def apply(xyz1: Tensor, xyz2: Tensor, eps: float, iters: int) -> tuple[Tensor, Tensor]:
        """Squared distances (B, N), differentiable in `xyz1` alone, and int32 indices into `xyz2` (B, N)."""
        idx = auction(xyz1, xyz2, eps, iters)
        partner = xyz2.detach().float().gather(1, idx.unsqueeze(-1).expand(-1, -1, 3))
        return (xyz1.float() - partner).square().sum(-1), idx.int()


class emdModule(nn.Module):
    """Auction approximation; N need not be a multiple of 1024 here, as it had to be there."""

    def forward(self, input1: Tensor, input2: Tensor, eps: float, iters: int) -> tuple[Tensor, Tensor]:
        """As `emdFunction.apply`; usual are `eps` 0.005 with 50 `iters` to train and 0.002 with 10000 to measure."""
        return emdFunction.apply(input1, input2, eps, iters)


def approximate_match(xyz1: Tensor, xyz2: Tensor) -> Tensor:
    """Mass (B, M, N) that each point of `xyz1` (B, N, 3) sends to each of `xyz2` (B, M, 3).

    Ten levels, from kernels that reach near points alone to one that reaches all: at each, a point offers its
    remaining mass in the shares exp(-level d²) times what is wanted there, and what is wanted caps what is taken.

    Source: Fan et al., "A point set generation network", 2017, whose code the extension descends from.
    """
    xyz1, xyz2 = xyz1.detach(), xyz2.detach()
    n, m = xyz1.shape[1], xyz2.shape[1]
    batch = xyz1.shape[0]
    sq_distance = torch.cdist(xyz2, xyz1, compute_mode=EXACT).square()  # (B, M, N)
    offered = xyz1.new_full((batch, 1, n), max(m // n, 1))
    demand = xyz1.new_full((batch, m, 1), max(n // m, 1))
    match = torch.zeros_like(sq_distance)
    for exponent in range(7, -3, -1):
        level = 4.0**exponent if exponent > -2 else 0.0
        near = (-level * sq_distance).exp()
        share = near * (offered / ((near * demand).sum(1, keepdim=True) + MASS))
        received = share.sum(2, keepdim=True) * demand
        accepted = (demand / (received + MASS)).clamp(max=1) * demand
        sent = share * accepted
        match += sent
        demand = (demand - received).clamp(min=0)
        offered = (offered - sent.sum(1, keepdim=True)).clamp(min=0)
    return match


class EarthMoverDistanceFunction:
    """Cost of `approximate_match`, which itself is a constant to the gradient, as in the extension."""

    @staticmethod
    def apply(xyz1: Tensor, xyz2: Tensor) -> Tensor:
        """(B, N, 3) and (B, M, 3) to the sum over pairs of mass times squared distance (B), differentiable in both."""
        match = approximate_match(xyz1, xyz2)
        return ((xyz2.unsqueeze(2) - xyz1.unsqueeze(1)).square().sum(-1) * match).sum((1, 2))


class earth_mover_distance(nn.Module):
    """`EarthMoverDistanceFunction` per point of the first cloud, averaged over the batch."""

    def forward(self, xyz1: Tensor, xyz2: Tensor, transpose: bool = False) -> Tensor:
        """(B, N, 3) and (B, M, 3) to a scalar; `transpose` is accepted and, as there, does nothing."""
        return (EarthMoverDistanceFunction.apply(xyz1, xyz2) / xyz1.size(1)).mean()


# The names under which packages re-export them: `from extensions.emd import emd`, `... import emd_module as emd`.
emd = earth_mover_distance
emd_module = sys.modules[__name__]
