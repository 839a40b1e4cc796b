"""Ball query: the first points within a radius."""

import torch
from torch import Tensor

from pointpeft.ops.core import checks, library


def ball_query(query: Tensor, support: Tensor, radius: float, k: int) -> Tensor:
    """Finds the first k support points, in index order, that lie strictly within a radius of each query.

    Concretely, the support points n with ‖query[b, m] - support[b, n]‖² < radius² are written to `idx[b, m]` from the
    lowest n on, until there are k. Where fewer are found, the first one found fills the rest; where none is found, all
    k are 0: the padding of pointnet2_ops. The k found are therefore not the nearest.

    Args:
        query: Coordinates of the ball centres, any strides. Distances are computed in float32, for float64 in float64,
            and so is radius². [B, M, 3]
        support: Coordinates to search, of the dtype and device of `query`, any strides. [B, N, 3]
        radius: Radius of the balls, not squared, in the unit of the coordinates; > 0.
        k: How many indices each query gets, 1 <= k <= N.

    Returns:
        Indices into N, int64, contiguous. [B, M, k]

    Raises:
        ValueError: A wrong shape, dtype, device or value; a non-finite coordinate (on CUDA only under
            POINTPEFT_CHECK=1; otherwise such points are never found).

    Source: PointNet++ (2017), §3.2; the padding and the order: the pointnet2_ops package.
    """
    checks.require_floating("query", query, 3, 3)
    checks.require_floating("support", support, 3, 3)
    checks.require_same_kind("support", support, "query", query)
    if support.shape[0] != query.shape[0]:
        raise ValueError(f"support must have B = {query.shape[0]} clouds like query, got {support.shape[0]}")
    checks.require_count("k", k, support.shape[1], "N")
    if isinstance(radius, bool) or not isinstance(radius, (int, float)) or not radius > 0:
        raise ValueError(f"radius must be a number above 0, got {radius!r}")
    if query.device.type != "cpu" or query.shape[1] == 0:  # the CPU kernel looks by itself, where it has work
        checks.require_finite("query", query)
        checks.require_finite("support", support)
    if library.use_reference(query):
        return ball_query_reference(query, support, radius, k)
    return library.call(torch.ops.pointpeft.ball_query, query, support, float(radius), k)


def ball_query_reference(query: Tensor, support: Tensor, radius: float, k: int) -> Tensor:
    """The definition in plain PyTorch; arguments and result as in `ball_query`."""
    checks.require_finite("query", query)
    checks.require_finite("support", support)
    accumulate = torch.float64 if query.dtype == torch.float64 else torch.float32
    n = support.shape[1]
    q, s = query.detach().to(accumulate), support.detach().to(accumulate)
    dx, dy, dz = (q[:, :, None] - s[:, None]).unbind(-1)
    sq_radius = torch.tensor(radius, dtype=accumulate, device=query.device).square()
    inside = dx * dx + dy * dy + dz * dz < sq_radius
    # What is outside sorts behind everything as N.
    idx = torch.where(inside, torch.arange(n, device=query.device), n).sort(-1).values[..., :k]
    first = torch.where(idx[..., :1] < n, idx[..., :1], 0)
    return torch.where(idx < n, idx, first)


@library.register_fake("ball_query")
def _fake(query, support, radius, k):
    return query.new_empty((*query.shape[:2], k), dtype=torch.int64)


library.returns_indices("ball_query")
