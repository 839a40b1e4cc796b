"""Cases of aggregate_neighbors and its backwards."""

import torch
from torch import Tensor

from tests.csrc.cases.draw import FLOATS, Case, Draw, rows_or_zeros, summed_rows, tolerance_of, wide

MODES = ("max", "mean", "sum", "weighted")


def shapes(draw: Draw) -> tuple[int, int, int, int, int]:
    """B, N, C, G, S; S above 256 makes argmax wide, C a multiple of 8 makes packs."""
    s = draw.choice((1, 2, draw.size(20), 256, 257)) if draw.random() < 0.8 else draw.size(40)
    groups = draw.size(30 if s < 100 else 3)
    channels = draw.choice((1, 3, 7, 8, 16, 24, 32, 33, draw.size(64)))
    return draw.randint(1, 2), draw.size(80), channels, groups, s


def pooled(features: Tensor, idx: Tensor, weights: Tensor | None, mode: str) -> tuple[Tensor, Tensor]:
    """The pool in float64, and of a maximum where it was found: the first of equal values, the first NaN before all."""
    rows = rows_or_zeros(features, idx).double()
    if mode == "max":
        place = torch.where(rows.isnan().any(2), rows.isnan().int().argmax(2), rows.nan_to_num(-torch.inf).argmax(2))
        return rows.gather(2, place[:, :, None])[:, :, 0], place
    if weights is not None:
        rows = rows * weights.double()[..., None]
    return rows.mean(2) if mode == "mean" else rows.sum(2), torch.empty(0)


def aggregate_neighbors(draw: Draw) -> Case:
    dtype, mode = draw.choice(FLOATS), draw.choice(("max", *MODES))
    b, n, c, groups, s = shapes(draw)
    x = draw.normal(b, n, c).to(dtype) if draw.random() < 0.6 else draw.integers(-2, 3, b, n, c).to(dtype)
    features = draw.strided(draw.not_finite(x) if draw.random() < 0.2 else x)
    outside = draw.random() < 0.2
    idx = draw.indices(b, n, groups, s, outside=outside)
    weights = draw.normal(b, groups, s).to(wide(dtype)) if mode == "weighted" else None
    keep = mode == "max" and draw.random() < 0.8

    def expected():
        value, place = pooled(features, idx, weights, mode)
        magnitude = float(rows_or_zeros(features, idx).double().abs().nan_to_num(0, 0, 0).max())
        tolerance = None if mode == "max" else tolerance_of(dtype) * (1 + magnitude * (1 if mode == "mean" else 3 * s))
        argmax = place.to(torch.uint8 if s <= 256 else torch.int32) if keep else torch.empty(0, groups, c)
        return ((value.to(dtype), tolerance), (argmax if keep else argmax.to(torch.uint8), None))[: 2 if keep else 1]

    path = mode + (", wide argmax" if keep and s > 256 else "") + (", out of range" if outside else "")
    arguments = (features, idx, weights, MODES.index(mode), keep)
    return Case("aggregate_neighbors", path, arguments, expected, draw.device())


def aggregate_neighbors_backward(draw: Draw) -> Case:
    dtype, mode = draw.choice(FLOATS), draw.choice(("max", *MODES))
    b, n, c, groups, s = shapes(draw)
    outside = draw.random() < 0.2
    idx = draw.indices(b, n, groups, s, outside=outside)
    grad = draw.strided(draw.normal(b, groups, c).to(dtype))
    weights = draw.normal(b, groups, s).to(wide(dtype)) if mode == "weighted" else None
    argmax = None
    if mode == "max":
        argmax = draw.integers(0, s, b, groups, c).to(torch.uint8 if s <= 256 else torch.int32)
    sorted, row_of = idx.reshape(b, groups * s).sort(dim=1, stable=True)

    def expected():
        wide_grad = grad.double()
        if argmax is not None:
            shares = torch.zeros(b, groups, s, c, dtype=torch.float64)
            shares.scatter_(2, argmax.long()[:, :, None], wide_grad[:, :, None])
        else:
            shares = wide_grad[:, :, None].repeat(1, 1, s, 1) / (s if mode == "mean" else 1)
            shares = shares * weights.double()[..., None] if weights is not None else shares
        magnitude = float(summed_rows(shares.abs(), idx, n).max())
        return ((summed_rows(shares, idx, n).to(dtype), tolerance_of(dtype) * (1 + magnitude)),)

    path = mode + (", wide argmax" if argmax is not None and s > 256 else "") + (", out of range" if outside else "")
    arguments = (grad, idx, weights, argmax, sorted, row_of, n, MODES.index(mode))
    return Case("aggregate_neighbors_backward", path, arguments, expected, draw.device())


def aggregate_neighbors_backward_weights(draw: Draw) -> Case:
    dtype = draw.choice(FLOATS)
    b, n, c, groups, s = shapes(draw)
    grad, features = draw.strided(draw.normal(b, groups, c).to(dtype)), draw.strided(draw.normal(b, n, c).to(dtype))
    idx = draw.indices(b, n, groups, s, outside=draw.random() < 0.2)

    def expected():
        products = grad.double()[:, :, None] * rows_or_zeros(features, idx).double()
        tolerance = (1e-12 if dtype == torch.float64 else 1e-5) * (1 + float(products.abs().sum(-1).max()))
        return ((products.sum(-1).to(wide(dtype)), tolerance),)

    operation = "aggregate_neighbors_backward_weights"
    return Case(operation, "weights", (grad, features, idx), expected, draw.device())


CASES = (
    aggregate_neighbors,
    aggregate_neighbors,
    aggregate_neighbors_backward,
    aggregate_neighbors_backward,
    aggregate_neighbors_backward_weights,
)
