"""Cases of knn: coordinates, few channels, products of many channels; one pass and several."""

import torch
from torch import Tensor

from pointpeft.ops import knn_reference
from tests.csrc.cases.draw import FLOATS, Case, Draw, references_take_any_value, wide


def by_clouds(query: Tensor, support: Tensor, k: int, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """The reference, each cloud without its padding, so that what is not finite comes behind nothing but itself."""
    parts = []
    with references_take_any_value():
        for b in range(len(query)):
            end = support.shape[1] if lengths is None else int(lengths[b])
            parts.append(knn_reference(query[b : b + 1], support[b : b + 1, :end], k))
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def number_of_neighbours(draw: Draw, n: int) -> int:
    edges = (1, 31, 32, 33, 63, 64, 65, 127, 128, 129, 256, 257, 300)
    return min(n, draw.choice((draw.randint(1, 16), draw.choice(edges), n)))


def coordinates_and_few_channels(draw: Draw) -> Case:
    dtype, c = draw.choice(FLOATS), draw.choice((3, draw.choice((1, 2, 4, 5, 7, 15, 16))))
    b, m, n = draw.randint(1, 2), draw.size(24), draw.choice((draw.size(500), draw.size(2600)))
    k = number_of_neighbours(draw, n)
    m = min(m, 3 if n * k > 200_000 else 9 if n > 600 else m)
    finite = draw.random() < 0.75
    support, query = draw.cloud(b, n, c, dtype, finite), draw.cloud(b, m, c, dtype, finite or draw.random() < 0.5)
    if draw.random() < 0.3:
        query = support[:, draw.integers(0, n, m)]
    lengths = draw.integers(k, n + 1, b) if draw.random() < 0.4 else None

    def expected():
        sq_distance, idx = by_clouds(query, support, k, lengths)
        return ((sq_distance, None), (idx, None))

    path = ("3 channels" if c == 3 else "few channels") + (", passes" if k > 128 else "")
    return Case("knn", path, (query, support, k, lengths), expected, draw.device())


def products(draw: Draw) -> Case:
    """Points of a lattice: products and norms of many channels are whole numbers, exact in any order."""
    dtype, c = draw.choice(FLOATS), draw.choice((17, 31, 32, 33, 48, 64, 65))
    b, m, n = draw.randint(1, 2), draw.size(70), draw.size(200)
    k = number_of_neighbours(draw, n)
    query, support = (draw.strided(draw.integers(-3, 4, b, size, c).to(dtype)) for size in (m, n))
    lengths = draw.integers(k, n + 1, b) if draw.random() < 0.4 else None
    in_chunks = draw.random() < 0.5

    def expected():
        sq_distance, idx = by_clouds(query, support, k, lengths)
        return ((sq_distance, None), (idx, None))

    options = {"product_entries": draw.randint(1, 1 + b * n * m)} if in_chunks else {}
    path = "products" + (" in chunks" if in_chunks else "") + (", passes" if k > 128 else "")
    return Case("knn", path, (query, support, k, lengths), expected, draw.device(), options)


def products_of_any_values(draw: Draw) -> Case:
    """Distances to rounding. Indices are those of the kernel's distances, which only it knows: left out."""
    dtype, c = draw.choice(FLOATS), draw.choice((17, 33, 64))
    b, m, n = 1, draw.size(40), draw.size(150)
    k = draw.randint(1, n)
    query, support = draw.cloud(b, m, c, dtype), draw.values(b, n, c, dtype, "uniform")
    scale = float(query.double().square().sum(-1).max() + support.double().square().sum(-1).max())

    def expected():
        q, s = query.double(), support.double()
        sq_distance = (q[:, :, None] - s[:, None]).square().sum(-1).sort(-1).values[..., :k].to(wide(dtype))
        return ((sq_distance, 1e-5 * scale if scale < 1e30 else float("inf")),)

    return Case("knn", "products, any values", (query, support, k, None), expected, draw.device())


def fewer_points_than_k(draw: Draw) -> Case:
    """Nobody looks at lengths on CUDA: what is missing is NaN and point 0."""
    b, m, n, c = draw.randint(1, 3), draw.size(20), draw.size(300), draw.choice((3, 3, 5, 20))
    k = draw.randint(1, n)
    lengths = draw.integers(0, k + 1, b)
    query, support = (draw.integers(-3, 4, b, size, c).float() for size in (m, n))

    def expected():
        sq_distance, idx = torch.full((b, m, k), torch.nan), torch.zeros(b, m, k, dtype=torch.int64)
        for i, end in enumerate(lengths.tolist()):
            if end > 0:
                nearest = by_clouds(query[i : i + 1], support[i : i + 1], end, lengths[i : i + 1])
                sq_distance[i, :, :end], idx[i, :, :end] = nearest[0][0], nearest[1][0]
        return ((sq_distance, None), (idx, None))

    return Case("knn", "fewer points than k", (query, support, k, lengths), expected, draw.device())


CASES = (coordinates_and_few_channels, products, products_of_any_values, fewer_points_than_k)
