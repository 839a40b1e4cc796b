"""The Z-order curve through a cloud's centres: a row of tokens in which neighbours are mostly neighbours in space."""

import torch
from torch import Tensor

BITS = 16  # of a coordinate, as PointGST published


def morton_key(cells: Tensor) -> Tensor:
    """Position along the Z-order curve: the bits of y, x and z in turn, y highest. int64 [..., 3] -> [...]"""
    key = torch.zeros_like(cells[..., 0])
    for bit in range(BITS):
        for place, axis in enumerate((2, 0, 1)):  # lowest first
            key |= (cells[..., axis] >> bit & 1) << (3 * bit + place)
    return key


def along_curve(cells: Tensor) -> Tensor:
    """Rows of each cloud in the order of the curve through their cells. int64 [B, G, 3] -> int64 [B, G]"""
    return morton_key(cells).sort(dim=-1, stable=True).indices


def cells_of(centers: Tensor) -> Tensor:
    """Cells of a cubic grid of 2^BITS a side that spans the cloud. [B, G, 3] -> int64 [B, G, 3]"""
    low, high = centers.amin(1, keepdim=True), centers.amax(1, keepdim=True)
    side = (high - low).amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return ((centers - low) / side * (2**BITS - 1)).long()


def sorted_by(x: Tensor, order: Tensor) -> Tensor:
    """Rows of each cloud in another order. [B, G, C], int64 [B, G] -> [B, G, C]"""
    return x.gather(1, order[..., None].expand(-1, -1, x.shape[-1]))
