"""The tokenizer's first half: centres, and the patches of points around them."""

from typing import NamedTuple

import torch
from torch import Tensor

from pointpeft.ops.core import checks, library
from pointpeft.ops.points.furthest_point_sample import checked, furthest_point_sample_reference
from pointpeft.ops.points.gather import gather_reference, scatter_rows, take_rows
from pointpeft.ops.points.knn import knn_reference


class Groups(NamedTuple):
    """Patches of a batch of clouds: what `sample_and_group` returns."""

    patches: Tensor
    """Offsets of each patch's points from its centre, nearest first. [B, G, S, 3]"""
    centers: Tensor
    """Coordinates of the centres, in the order they were picked. [B, G, 3]"""
    center_idx: Tensor
    """Their indices into N, int64. [B, G]"""
    neighbor_idx: Tensor
    """The patches' points as indices into N, int64. [B, G, S]"""


def sample_and_group(
    xyz: Tensor,
    num_groups: int,
    group_size: int,
    *,
    lengths: Tensor | None = None,
    start: int | Tensor = 0,
    min_sq_norm: float = 0.0,
) -> Groups:
    """Picks centres by farthest point sampling and takes the nearest points of each, as offsets from it.

    Concretely, `centers[b, g] == xyz[b, center_idx[b, g]]` and
    `patches[b, g, s] == xyz[b, neighbor_idx[b, g, s]] - centers[b, g]`, with neighbours by ascending distance, so that
    a patch begins with its centre or a duplicate of it. One operation; differentiable in `xyz` through patches and
    centres.

    Args:
        xyz: Coordinates, any strides. [B, N, 3]
        num_groups: G, how many centres, 1 <= G <= N.
        group_size: S, how many points a patch, 1 <= S <= N.
        lengths: Valid points of each cloud, its first ones, max(G, S) <= length <= N; None for all N. int32 or
            int64, [B]
        start: Index of the first centre, one for all clouds or one each. int, or int64 [B]
        min_sq_norm: As in `furthest_point_sample`; 1e-3 is what Point-MAE and its descendants were trained with.

    Returns:
        Patches and centres in the dtype of `xyz`, and their indices.

    Raises:
        ValueError: A wrong shape, dtype, device or value; a non-finite coordinate (on CUDA only under
            POINTPEFT_CHECK=1; otherwise such points come last).

    Source: the `Group` module of Point-BERT (2022) and Point-MAE (2022).
    """
    lengths, starts, start = checked(xyz, num_groups, lengths, start, min_sq_norm, count_name="num_groups")
    checks.require_count("group_size", group_size, xyz.shape[1], "N")
    if group_size > num_groups:
        checks.require_lengths(lengths, xyz, "xyz", group_size, "group_size")
    if library.use_reference(xyz):
        return sample_and_group_reference(
            xyz,
            num_groups,
            group_size,
            lengths=lengths,
            start=start if starts is None else starts,
            min_sq_norm=min_sq_norm,
        )
    op = torch.ops.pointpeft.sample_and_group.default
    return Groups(*library.call(op, xyz, num_groups, group_size, lengths, starts, start, float(min_sq_norm)))


def sample_and_group_reference(
    xyz: Tensor,
    num_groups: int,
    group_size: int,
    *,
    lengths: Tensor | None = None,
    start: int | Tensor = 0,
    min_sq_norm: float = 0.0,
) -> Groups:
    """The definition in plain PyTorch; arguments and result as in `sample_and_group`."""
    center_idx = furthest_point_sample_reference(xyz, num_groups, lengths=lengths, start=start, min_sq_norm=min_sq_norm)
    centers = gather_reference(xyz, center_idx)
    neighbor_idx = knn_reference(centers.detach(), xyz.detach(), group_size, lengths=lengths)[1]
    return Groups(gather_reference(xyz, neighbor_idx) - centers[:, :, None], centers, center_idx, neighbor_idx)


@library.register_fake("sample_and_group")
def _fake(xyz, num_groups, group_size, lengths, starts, start, min_sq_norm):
    batch = xyz.shape[0]
    return (
        xyz.new_empty((batch, num_groups, group_size, 3)),
        xyz.new_empty((batch, num_groups, 3)),
        xyz.new_empty((batch, num_groups), dtype=torch.int64),
        xyz.new_empty((batch, num_groups, group_size), dtype=torch.int64),
    )


def _save(ctx, inputs, output):
    ctx.save_for_backward(output[2], output[3])
    ctx.n = inputs[0].shape[1]


def _backward(ctx, to_patches, to_centers, *_):
    center_idx, neighbor_idx = ctx.saved_tensors
    # One sum over the patches' points and, behind them, the centres, which each patch also subtracts.
    batch, groups, size = neighbor_idx.shape
    rows = torch.cat([neighbor_idx.reshape(batch, groups * size), center_idx], 1)
    grad = torch.cat([to_patches.reshape(batch, groups * size, 3), to_centers - to_patches.sum(2)], 1)
    return scatter_rows(grad, rows, ctx.n), None, None, None, None, None, None


def _formula(inputs, output):
    xyz, (_, _, center_idx, neighbor_idx) = inputs[0], output
    centers = take_rows(xyz, center_idx)
    return take_rows(xyz, neighbor_idx) - centers[:, :, None], centers, center_idx, neighbor_idx


library.register_autograd("sample_and_group", _formula, _backward, _save)
