"""Random shapes, values and strides for cases of the emulated kernels."""

import contextlib
import dataclasses
import math
import random
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from pointpeft.ops.core import checks
from tests.csrc.emulation.kernels import DEVICES, Device

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
VALUES = ("uniform", "lattice", "duplicates", "one point", "line", "far away", "outlier", "huge", "tiny")
STRIDES = ("contiguous", "planar", "every second", "columns", "odd offset", "reversed batch", "one cloud")


@dataclasses.dataclass
class Case:
    """A call of an operation, and what it must give: every output with its tolerance, None for bit for bit."""

    operation: str
    path: str  # of the kernel, for the report
    arguments: tuple[Any, ...]
    expected: Callable[[], tuple[tuple[Tensor, float | None], ...]]
    device: Device
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.operation} ({self.path}) on {self.device}: {describe(self.arguments)} {self.options or ''}"


def describe(arguments: tuple[Any, ...]) -> str:
    """Arguments in a line: of tensors shape, strides and dtype."""
    texts = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            shape, dtype = tuple(argument.shape), str(argument.dtype).removeprefix("torch.")
            small = argument.tolist() if argument.dim() == 1 and argument.numel() <= 8 else ""
            texts.append(f"{dtype}{shape} by {argument.stride()}{small}")
        else:
            texts.append(str(argument))
    return ", ".join(texts)


class Draw(random.Random):
    """A source of random cases. `scale` multiplies how large they may become."""

    def __init__(self, seed: int, scale: float = 1.0):
        super().__init__(seed)
        self.scale = scale

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.getrandbits(48))

    def size(self, most: float) -> int:
        """Often small, often beside a multiple of a warp or a block."""
        most = max(1, int(most * self.scale))
        kind = self.random()
        if kind < 0.25:
            return self.randint(1, min(most, 8))
        if kind < 0.6:
            edge = self.choice((32, 64, 96, 128, 256, 512, 1024, 2048)) + self.choice((-1, 0, 1))
            return min(most, edge)
        return self.randint(1, most)

    def device(self, *, min_architecture: int = 0, min_cluster: int = 1) -> Device:
        return self.choice([d for d in DEVICES if d.architecture >= min_architecture and d.max_cluster >= min_cluster])

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator(), dtype=torch.float64)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator())

    def values(self, b: int, n: int, c: int, dtype: torch.dtype, kind: str | None = None) -> Tensor:
        """Points that a wrong bound, a wrong tie or an overflow would give away. [b, n, c]"""
        kind = kind or self.choice(VALUES)
        x = self.normal(b, n, c)
        if kind == "lattice":  # many equal distances
            x = self.integers(-3, 4, b, n, c).double()
        elif kind == "duplicates":
            x = x[:, self.integers(0, max(1, n // 4), n)]
        elif kind == "one point":
            x = x[:, :1].repeat(1, n, 1)
        elif kind == "line":
            x = x[..., :1] * torch.linspace(-2, 3, c, dtype=torch.float64)
        elif kind == "far away":  # numbers are coarse: ties by rounding
            x = x + 100
        elif kind == "outlier":
            x[:, self.randrange(n)] *= 1e4
        elif kind == "huge":  # squares overflow
            x = x.clamp(-2, 2) * {torch.float16: 3e4, torch.float64: 1e300}.get(dtype, 1e38)
        elif kind == "tiny":  # squares vanish
            x = x * {torch.float16: 1e-6, torch.float64: 1e-170}.get(dtype, 1e-25)
        return x.to(dtype)

    def not_finite(self, x: Tensor, share: float = 0.1) -> Tensor:
        """The same with NaN and infinities in places."""
        bad = torch.tensor([math.nan, math.inf, -math.inf], dtype=x.dtype)[self.integers(0, 3, *x.shape)]
        return torch.where(torch.rand(x.shape, generator=self.generator()) < share, bad, x)

    def strided(self, x: Tensor) -> Tensor:
        """The same values with other strides; NaN, or -10^6, lies between them. [b, n, c]"""
        b, n, c = x.shape
        kind = self.choice(STRIDES)
        fill = math.nan if x.is_floating_point() else 1 if x.dtype == torch.bool else -77 % 200
        if kind == "planar":
            return x.transpose(1, 2).contiguous().transpose(1, 2)
        if kind == "every second":
            window = torch.full((b, 2 * n, c), fill, dtype=x.dtype)[:, 1::2]
        elif kind == "columns":
            window = torch.full((b, n, c + 2), fill, dtype=x.dtype)[..., 1 : 1 + c]
        elif kind == "odd offset":
            window = torch.full((x.numel() + 1,), fill, dtype=x.dtype)[1:].view(b, n, c)
        elif kind == "reversed batch":
            window = torch.full((n, b, c), fill, dtype=x.dtype).transpose(0, 1)
        elif kind == "one cloud":
            return x[:1].expand(b, n, c)
        else:
            return x.contiguous()
        window.copy_(x)
        return window

    def cloud(self, b: int, n: int, c: int, dtype: torch.dtype, finite: bool = True) -> Tensor:
        x = self.values(b, n, c, dtype)
        return self.strided(x if finite else self.not_finite(x))

    def indices(self, b: int, n: int, *shape: int, outside: bool = False) -> Tensor:
        """Indices into n, of any strides; `outside` puts some out of range."""
        idx = self.integers(0, n, b, *shape)
        if self.random() < 0.25:
            idx = torch.full_like(idx, self.randrange(n))
        if outside:
            wrong = torch.tensor([-1, n, -(2**62), 2**62])[self.integers(0, 4, b, *shape)]
            idx = torch.where(self.integers(0, 4, b, *shape) == 0, wrong, idx)
        if idx.dim() > 1 and self.random() < 0.25:
            idx = idx.transpose(0, -1).contiguous().transpose(0, -1)
        return idx


def wide(dtype: torch.dtype) -> torch.dtype:
    """What sums of a dtype are taken in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def tolerance_of(dtype: torch.dtype) -> float:
    """Of a sum of some hundred products, taken in another order and rounded once to `dtype`, relative to its terms."""
    return {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]


def rows_or_zeros(features: Tensor, idx: Tensor) -> Tensor:
    """features[b, idx[b, ...]], zeros where an index is out of range."""
    good = (idx >= 0) & (idx < features.shape[1])
    batch = torch.arange(len(idx)).view(-1, *[1] * (idx.dim() - 1))
    rows = features[batch, torch.where(good, idx, 0)]
    return torch.where(good[..., None], rows, torch.zeros((), dtype=features.dtype))


def summed_rows(rows: Tensor, idx: Tensor, n: int) -> Tensor:
    """The sum of the rows (B, ..., C) by idx (B, ...) in float64, without those out of range. [B, n, C]"""
    b, c = rows.shape[0], rows.shape[-1]
    good = ((idx >= 0) & (idx < n)).reshape(b, idx[0].numel())
    flat = torch.where(good[..., None], rows.double().reshape(b, idx[0].numel(), c), 0.0)
    target = torch.where(good, idx.reshape(b, idx[0].numel()), 0)
    return torch.zeros(b, n, c, dtype=torch.float64).scatter_add_(1, target[..., None].expand_as(flat), flat)


@contextlib.contextmanager
def references_take_any_value() -> Iterator[None]:
    """References check that values are finite, as the operations do on the CPU; on CUDA nobody looks."""
    with mock.patch.object(checks, "require_finite", return_value=None):
        yield
