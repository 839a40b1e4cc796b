"""Cases of ball_query."""

import math

import torch

from pointpeft.ops import ball_query_reference
from tests.csrc.cases.draw import FLOATS, Case, Draw, references_take_any_value


def ball_query(draw: Draw) -> Case:
    dtype = draw.choice(FLOATS)
    b, m, n = draw.randint(1, 3), draw.size(60), draw.size(400)
    k = draw.randint(1, min(n, draw.choice((1, 8, 40, n))))
    finite = draw.random() < 0.75
    support, query = draw.cloud(b, n, 3, dtype, finite), draw.cloud(b, m, 3, dtype, finite or draw.random() < 0.5)
    if draw.random() < 0.3:  # a query at a point
        query = support[:, draw.integers(0, n, m)]
    radius = draw.choice((1e-9, 0.3, 1.0, 2.0, 1e9, math.inf, 10 ** draw.uniform(-3, 1)))
    max_blocks = draw.choice((1 << 20, 1, 2, 3))

    def expected():
        with references_take_any_value():
            return ((ball_query_reference(query, support, radius, k), None),)

    path = "a query a warp" if max_blocks > 3 else "several queries a warp"
    arguments = (query, support, radius, k)
    return Case("ball_query", path, arguments, expected, draw.device(), {"max_blocks": max_blocks})


def ball_query_boundary(draw: Draw) -> Case:
    """Points of a lattice at exactly the radius: outside."""
    n, k = draw.size(400), draw.randint(1, 20)
    support = draw.values(2, n, 3, torch.float32, "lattice")
    query, k = draw.values(2, draw.size(40), 3, torch.float32, "lattice"), min(k, n)
    radius = float(draw.randint(1, 4))

    def expected():
        return ((ball_query_reference(query, support, radius, k), None),)

    return Case("ball_query", "at the radius", (query, support, radius, k), expected, draw.device())


CASES = (ball_query, ball_query_boundary)
