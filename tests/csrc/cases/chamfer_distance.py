"""Cases of chamfer_distance and its backward."""

import torch
from torch import Tensor

from tests.csrc.cases.draw import FLOATS, Case, Draw, summed_rows, tolerance_of, wide


def nearest(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances and the first of the nearest; a distance that is no number is never the least."""
    p, q = a.to(wide(a.dtype)), b.to(wide(b.dtype))
    dx, dy, dz = (p[:, :, None] - q[:, None]).unbind(-1)
    sq_distance = dx * dx + dy * dy + dz * dz
    least = torch.where(sq_distance.isnan(), torch.inf, sq_distance).min(2)
    return least.values, (sq_distance == least.values[..., None]).int().argmax(2) * least.values.isfinite()


def clouds(draw: Draw) -> tuple[Tensor, Tensor]:
    dtype, b = draw.choice(FLOATS), draw.randint(1, 3)
    n, m = draw.size(200), draw.size(200)
    finite = draw.random() < 0.8
    a, other = draw.cloud(b, n, 3, dtype, finite), draw.cloud(b, m, 3, dtype, finite)
    return a, a[:, draw.integers(0, n, m)] if draw.random() < 0.2 else other


def size_of_blocks(a: Tensor) -> str:
    return "a warp a block" if a.shape[1] <= 32 else "2 warps a block" if a.shape[1] <= 64 else "4 warps a block"


def chamfer_distance(draw: Draw) -> Case:
    a, b = clouds(draw)

    def expected():
        of_a, of_b = nearest(a, b), nearest(b, a)
        return tuple((output, None) for output in (*of_a, *of_b))

    return Case("chamfer_distance", size_of_blocks(a), (a, b), expected, draw.device())


def chamfer_distance_backward(draw: Draw) -> Case:
    dtype, batch = draw.choice(FLOATS), draw.randint(1, 2)
    n, m = draw.size(150), draw.size(150)
    a, b = (draw.strided(draw.normal(batch, size, 3).to(dtype)) for size in (n, m))
    grad_a, grad_b = (draw.normal(batch, size).to(wide(dtype)) for size in (n, m))
    if draw.random() < 0.3:
        grad_a = grad_a[:, :1].expand(batch, n)
    idx_a, idx_b = draw.indices(batch, m, n), draw.indices(batch, n, m)
    outside = draw.random() < 0.2
    if outside:
        idx_a[0, 0], idx_b[0, -1] = -1, n

    def side(p, q, grad_p, grad_q, idx_p, idx_q):
        """The gradient of p, from its own pairs and from those of q; and of what magnitude its terms are."""
        p, q = p.double(), q.double()
        batch_index = torch.arange(batch)[:, None]
        good_p, good_q = (idx_p >= 0) & (idx_p < q.shape[1]), (idx_q >= 0) & (idx_q < p.shape[1])
        to_q = p - q[batch_index, torch.where(good_p, idx_p, 0)]
        own = torch.where(good_p[..., None], 2 * grad_p.double()[..., None] * to_q, 0.0)
        to_p = p[batch_index, torch.where(good_q, idx_q, 0)] - q
        theirs = 2 * grad_q.double()[..., None] * to_p
        gradient = own + summed_rows(theirs, idx_q, p.shape[1])
        magnitude = float((own.abs() + summed_rows(theirs.abs(), idx_q, p.shape[1])).max())
        return gradient.to(dtype), tolerance_of(dtype) * (1 + magnitude)

    def expected():
        return side(a, b, grad_a, grad_b, idx_a, idx_b), side(b, a, grad_b, grad_a, idx_b, idx_a)

    path = size_of_blocks(a) + (", out of range" if outside else "")
    return Case("chamfer_distance_backward", path, (grad_a, grad_b, a, b, idx_a, idx_b), expected, draw.device())


CASES = (chamfer_distance, chamfer_distance_backward)
