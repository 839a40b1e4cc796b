"""Farthest point sampling."""

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan

from pointpeft.ops.core import checks, library


def furthest_point_sample(
    xyz: Tensor,
    num_samples: int,
    *,
    lengths: Tensor | None = None,
    start: int | Tensor = 0,
    min_sq_norm: float = 0.0,
) -> Tensor:
    """Picks points one by one, each the farthest from those already picked.

    Concretely, `idx[b, 0] == start` and `xyz[b, idx[b, m]]` has the largest squared distance to its nearest point among
    `idx[b, :m]`; ties go to the lowest index. Where fewer distinct points than `num_samples` can be picked, the lowest
    index with the largest (zero) distance is picked again.

    Args:
        xyz: Coordinates, any strides; distances are computed in float32, for float64 in float64. [B, N, 3]
        num_samples: K, how many to pick, 1 <= K <= N.
        lengths: Valid points of each cloud, its first ones, K <= length <= N; None for all N. int32 or int64, [B]
        start: Index of the first pick, one for all clouds or one each. int, or int64 [B]
        min_sq_norm: Points with ‖p‖² <= min_sq_norm are never selected, except as `start`; 1e-3 is the rule of
            pointnet2_ops, which Point-MAE and its descendants were trained with. 0 switches the rule off.

    Returns:
        Indices into N, int64, contiguous. [B, K]

    Raises:
        ValueError: A wrong shape, dtype, device or value; a non-finite coordinate (on CUDA only under
            POINTPEFT_CHECK=1; otherwise such points are not selected while others remain).

    Source: Eldar et al., "The farthest point strategy for progressive image sampling", 1997; PointNet++ (2017), §3.2.
    """
    lengths, starts, start = checked(xyz, num_samples, lengths, start, min_sq_norm)
    if library.use_reference(xyz):
        return furthest_point_sample_reference(
            xyz, num_samples, lengths=lengths, start=start if starts is None else starts, min_sq_norm=min_sq_norm
        )
    op = torch.ops.pointpeft.furthest_point_sample.default
    return library.call(op, xyz, num_samples, lengths, starts, start, float(min_sq_norm))


def checked(
    xyz: Tensor,
    num_samples: int,
    lengths: Tensor | None,
    start: int | Tensor,
    min_sq_norm: float,
    count_name: str = "num_samples",
) -> tuple[Tensor | None, Tensor | None, int]:
    """Checks the arguments; gives lengths, starts (B,) or None, and the start of all clouds where that is None."""
    checks.require_floating("xyz", xyz, 3, 3)
    batch, n, _ = xyz.shape
    checks.require_count(count_name, num_samples, n, "N")
    lengths = checks.require_lengths(lengths, xyz, "xyz", num_samples, count_name)
    starts = None
    if isinstance(start, Tensor):
        if start.dtype != torch.int64 or start.shape != (batch,) or start.device != xyz.device:
            raise ValueError(
                f"start must be an int or an int64 tensor of shape ({batch},) on {xyz.device}, "
                f"got {start.dtype} {tuple(start.shape)} on {start.device}"
            )
        if checks.looks_at_values(start) and batch:
            valid = lengths if lengths is not None else n
            if bool(((start < 0) | (start >= valid)).any()):
                raise ValueError(f"start must be between 0 and each cloud's length - 1, got {start.tolist()}")
        starts, start = start.contiguous(), 0
    else:
        if isinstance(start, bool) or not isinstance(start, (int, torch.SymInt)):
            raise ValueError(f"start must be an int or an int64 tensor, got {type(start).__name__}")
        checks.require_count("start + 1", start + 1, n, "N")
        if lengths is not None and checks.looks_at_values(lengths) and batch and start >= int(lengths.min()):
            raise ValueError(f"start must be below each cloud's length, got {start} and length {int(lengths.min())}")
    if not isinstance(min_sq_norm, (int, float)) or not min_sq_norm >= 0:
        raise ValueError(f"min_sq_norm must be at least 0, got {min_sq_norm!r}")
    if xyz.device.type != "cpu":  # the CPU kernel looks by itself
        checks.require_finite("xyz", xyz, lengths)
    return lengths, starts, start


def furthest_point_sample_reference(
    xyz: Tensor,
    num_samples: int,
    *,
    lengths: Tensor | None = None,
    start: int | Tensor = 0,
    min_sq_norm: float = 0.0,
) -> Tensor:
    """The definition in plain PyTorch; arguments and result as in `furthest_point_sample`."""
    checks.require_finite("xyz", xyz, lengths)
    batch, n = xyz.shape[:2]
    p = xyz.detach() if xyz.dtype == torch.float64 else xyz.detach().float()
    candidate = torch.isfinite(p).all(-1)
    if min_sq_norm > 0:
        x, y, z = p.unbind(-1)
        candidate &= x * x + y * y + z * z > min_sq_norm
    if lengths is not None:
        candidate &= torch.arange(n, device=xyz.device) < lengths[:, None]
    distance = torch.where(candidate, torch.inf, -1.0).to(p)  # to the nearest pick; -1 marks what is never picked
    pick = start if isinstance(start, Tensor) else torch.full((batch,), start, dtype=torch.int64, device=xyz.device)

    def step(carry: tuple[Tensor, Tensor], _: Tensor | None) -> tuple[tuple[Tensor, Tensor], Tensor]:
        distance, pick = carry
        dx, dy, dz = (p - p.gather(1, pick[:, None, None].expand(-1, 1, 3))).unbind(-1)
        distance = torch.where(candidate, torch.minimum(distance, dx * dx + dy * dy + dz * dz), distance)
        return (distance, distance.argmax(1)), pick.clone()  # of equal ones the first

    if torch.compiler.is_exporting():  # one node in the graph, not a dozen per pick
        return scan(step, (distance, pick), torch.arange(num_samples, device=xyz.device))[1].transpose(0, 1)
    picks, carry = [], (distance, pick)
    for _ in range(num_samples):
        carry, picked = step(carry, None)
        picks.append(picked)
    return torch.stack(picks, 1)


@library.register_fake("furthest_point_sample")
def _fake(xyz, num_samples, lengths, starts, start, min_sq_norm):
    return xyz.new_empty((xyz.shape[0], num_samples), dtype=torch.int64)


library.returns_indices("furthest_point_sample")
library.returns_indices("_furthest_point_sample_one_way")
