"""Right arguments of the registered operations that no public function is a thin cover of."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.hardening.fuzz.draw import FLOATS, Draw

RAW: dict[str, Callable[[Draw], list[Any]]] = {}
"""Makes the arguments of a call, by the name of the operation."""


def raw(function: Callable[[Draw], list[Any]]) -> Callable[[Draw], list[Any]]:
    RAW[function.__name__] = function
    return function


def wide(dtype: torch.dtype) -> torch.dtype:
    """What sums are taken in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Shapes:
    """The sizes and the dtype that the tensors of one call share."""

    def __init__(self, draw: Draw) -> None:
        self.draw, self.dtype = draw, draw.choice(FLOATS)
        self.n, self.c, self.r = draw.size(65), draw.size(33, 1), draw.size(17, 1)

    def of(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(shape, generator=self.draw.torch).to(dtype or self.dtype)

    def optional(self, *values: Any) -> tuple[Any, ...]:
        """All of the values, or None for each."""
        return values if self.draw.happens(0.6) else (None,) * len(values)

    def seed(self) -> Tensor | None:
        return self.optional(torch.tensor(self.draw.getrandbits(62)))[0]


@raw
def _furthest_point_sample_one_way(draw: Draw) -> list[Any]:
    xyz = draw.floats(draw.size(3), draw.size(65, 1), 3, dtype=draw.choice(FLOATS), kind="normal")
    return [xyz, draw.randint(1, xyz.shape[1]), draw.choice(["alone", "together", "tree"])]


@raw
def _knn_one_way(draw: Draw) -> list[Any]:
    dtype, batch, n, channels = draw.choice(FLOATS), draw.size(3), draw.size(65, 1), draw.choice([1, 3])
    query, support = (draw.floats(batch, m, channels, dtype=dtype, kind="normal") for m in (draw.size(33), n))
    return [query, support, draw.randint(1, n), draw.choice(["rows", "tree", "product"])]


@raw
def _scale_shift_rows(draw: Draw) -> list[Any]:
    s = Shapes(draw)
    return [s.of(s.n, s.c), s.of(s.c), s.of(s.c), draw.happens(0.5), s.of(s.n, s.c)]


@raw
def _scale_shift_rows_backward(draw: Draw) -> list[Any]:
    s = Shapes(draw)
    return [s.of(s.n, s.c), s.of(s.n, s.c), s.of(s.c), *s.optional(s.of(s.c)), s.of(s.n, s.c)]


@raw
def _norm_rows(draw: Draw) -> list[Any]:
    s = Shapes(draw)
    return [s.of(s.n, s.c), s.of(s.c), s.of(s.c), *s.optional(s.of(s.c)), 1e-5]


@raw
def _norm_rows_backward(draw: Draw) -> list[Any]:
    s = Shapes(draw)
    long = wide(s.dtype)
    gate = s.optional(s.of(s.c), s.of(s.n, dtype=long))
    return [s.of(s.n, s.c), s.of(s.n, s.c), s.of(2 * s.n, dtype=long), s.of(s.c), *gate]


@raw
def _add_norm_rows(draw: Draw) -> list[Any]:
    s = Shapes(draw)
    stream = torch.float32 if s.dtype.itemsize == 2 and draw.happens(0.5) else s.dtype
    y, total = s.optional(s.of(s.n, s.c), s.of(s.n, s.c, dtype=stream))
    x, weight, bias = s.of(s.n, s.c, dtype=stream), s.of(s.c, dtype=stream), s.of(s.c, dtype=stream)
    return [x, y, weight, bias, 1e-5, total, s.of(s.n, s.c)]


@raw
def _adapter_hidden(draw: Draw) -> list[Any]:
    s = Shapes(draw)
    return [s.of(s.n, s.r), s.of(s.n, dtype=wide(s.dtype)), s.seed(), 0.1]


@raw
def _adapter_hidden_backward(draw: Draw) -> list[Any]:
    s = Shapes(draw)
    return [s.of(s.n, s.r), s.of(s.n, s.r), s.of(s.n, dtype=wide(s.dtype)), s.seed(), 0.1]


@raw
def _adapter_output(draw: Draw) -> list[Any]:
    s = Shapes(draw)
    return [s.of(s.n, s.c), s.of(s.c), s.of(s.n, dtype=wide(s.dtype)), draw.choice([0, 1]) if s.n else 0]


@raw
def _adapter_closing(draw: Draw) -> list[Any]:
    s = Shapes(draw)
    channels = [s.of(s.c), s.of(s.c)]
    a = [s.of(s.n, s.c), s.of(s.c), s.of(s.n, dtype=wide(s.dtype)), s.of(s.n, s.c), *channels]
    return [*a, *s.optional(s.of(s.n, s.c)), 1, s.of(s.n, s.c)]


@raw
def _adapter_gradient(draw: Draw) -> list[Any]:
    s = Shapes(draw)
    prompt = s.optional(s.of(1, s.c))
    return [s.of(s.n, s.c), *prompt, s.of(s.n, s.c), s.of(s.c), s.of(s.n, dtype=wide(s.dtype))]


def heads_of(draw: Draw) -> tuple[Shapes, int, int, int]:
    """Shapes, clouds, tokens and heads of an attention; its channels are 3 a head."""
    return Shapes(draw), draw.size(2), draw.size(33), draw.choice([1, 2, 3])


@raw
def _attention(draw: Draw) -> list[Any]:
    s, batch, tokens, heads = heads_of(draw)
    width = heads * draw.choice([1, 3, 16])
    adapted = s.optional(s.of(3 * width), s.of(3 * width))
    return [s.of(batch, tokens, 3 * width), *adapted, heads, s.of(batch, tokens, width)]


@raw
def _attention_backward(draw: Draw) -> list[Any]:
    s, batch, tokens, heads = heads_of(draw)
    width = heads * draw.choice([1, 3, 16])
    adapted = s.optional(s.of(3 * width), s.of(3 * width))
    mixed, lse = s.of(batch, tokens, width), s.of(batch, heads, tokens, dtype=wide(s.dtype))
    qkv = s.of(batch, tokens, 3 * width)
    return [s.of(batch, tokens, width), qkv, *adapted, mixed, lse, heads, torch.empty_like(qkv)]


def parts_of(weight: Tensor) -> Tensor:
    """Room for the parts of a weight, which begin with a cache line."""
    rows, channels = ((size + 31) // 32 for size in weight.shape)
    return torch.zeros(rows * channels * 3 * 2 * 512, dtype=torch.bfloat16)


@raw
def _split_weight(draw: Draw) -> list[Any]:
    s = Shapes(draw)
    weight = s.of(s.r, s.c, dtype=torch.float32)
    return [weight, parts_of(weight)]


@raw
def _linear(draw: Draw) -> list[Any]:
    s = Shapes(draw)
    s.dtype = torch.float32
    weight = s.of(s.r, s.c)
    adapted = s.optional(s.of(s.r), s.of(s.r))
    return [s.of(s.n, s.c), weight, *s.optional(parts_of(weight)), *s.optional(s.of(s.r)), *adapted, s.of(s.n, s.r)]


@raw
def _is_cast(draw: Draw) -> list[Any]:
    s = Shapes(draw)
    whole = s.of(s.n, s.c, dtype=torch.float32)
    return [whole, whole.bfloat16()]


@raw
def layer_norm(draw: Draw) -> list[Any]:
    s = Shapes(draw)
    return [s.of(s.n, s.c), s.of(s.c), s.of(s.c), 1e-5, s.dtype]


@raw
def _patch_first_layer(draw: Draw) -> list[Any]:
    s = Shapes(draw)
    return [s.of(s.n, 3), s.of(s.c, 3), s.of(s.c), s.of(s.n, s.c)]


@raw
def _patch_max(draw: Draw) -> list[Any]:
    s = Shapes(draw)
    return [s.of(s.n * s.r, s.c), s.r, s.of(s.n, s.c)]


@raw
def _patch_clamp(draw: Draw) -> list[Any]:
    s = Shapes(draw)
    return [s.of(s.n * s.r, s.c), s.r, s.of(s.n, s.c)]
