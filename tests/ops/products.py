"""Shared by the tests of float32 products by AMX."""

import torch

# rows, channels, channels of the result
SIZES = [(1, 1, 1), (32, 32, 32), (33, 31, 65), (5, 700, 40), (300, 100, 70), (577, 384, 96), (70, 1500, 33)]


def product(x, weight, bias=None, out=None):
    """The result, or None where it is not done here."""
    out = torch.full((len(x), len(weight)), float("nan")) if out is None else out
    return out if linear(x, weight, None, bias, None, None, out) else None


def linear(*arguments):
    return torch.ops.pointpeft._linear.default(*arguments)


def draw(generator, n, k, m):
    return (torch.randn(shape, generator=generator) for shape in ((n, k), (m, k), (m,)))
