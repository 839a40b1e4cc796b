"""Cases of gather and its two backwards."""

import torch

from tests.csrc.cases.draw import FLOATS, Case, Draw, rows_or_zeros, summed_rows, tolerance_of

DTYPES = (*FLOATS, torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool)


def shape_of_indices(draw: Draw) -> tuple[int, ...]:
    return draw.choice(((), (draw.size(60),), (draw.size(20), draw.size(9)), (0,)))


def gather(draw: Draw) -> Case:
    dtype = draw.choice(DTYPES)
    b, n, c = draw.randint(1, 3), draw.size(300), draw.choice((draw.size(70), 4, 16, 32))  # rows of 16 bytes as well
    x = draw.normal(b, n, c) * 50
    features = draw.strided(x > 0 if dtype == torch.bool else x.to(dtype))
    outside = draw.random() < 0.3
    idx = draw.indices(b, n, *shape_of_indices(draw), outside=outside)
    path = "out of range" if outside else "rows"
    return Case("gather", path, (features, idx), lambda: ((rows_or_zeros(features, idx), None),), draw.device())


def gather_backward(draw: Draw) -> Case:
    """Whole numbers are summed exactly in any order."""
    dtype = draw.choice(FLOATS)
    b, n, c = draw.randint(1, 3), draw.size(200), draw.size(70)
    idx = draw.indices(b, n, *shape_of_indices(draw), outside=draw.random() < 0.2)
    grad = draw.integers(-3, 4, *idx.shape, c).to(dtype)

    def expected():
        return ((summed_rows(grad, idx, n).to(dtype), None),)

    return Case("gather_backward", "atomics", (grad, idx, n), expected, draw.device())


def gather_backward_sorted(draw: Draw) -> Case:
    dtype = draw.choice(FLOATS)
    b, n, c = draw.randint(1, 3), draw.size(60), draw.size(70)
    outside = draw.random() < 0.2
    idx = draw.indices(b, n, *shape_of_indices(draw), outside=outside)
    grad = draw.normal(*idx.shape, c).to(dtype)
    sorted, row_of = idx.reshape(b, idx[0].numel()).sort(dim=1, stable=True)

    def expected():
        magnitude = float(summed_rows(grad.abs(), idx, n).max()) if grad.numel() else 0.0
        return ((summed_rows(grad, idx, n).to(dtype), tolerance_of(dtype) * (magnitude + 1)),)

    path = "out of range" if outside else "inverse index"
    return Case("gather_backward_sorted", path, (grad, sorted, row_of, n), expected, draw.device())


CASES = (gather, gather_backward, gather_backward_sorted)
