"""Random tensors as they may come: any size, strides, dtype, and the values that bite."""

import random

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16)
SIZES = (0, 1, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 255, 257)
REACHES = ((17, 0.72), (65, 0.22), (257, 0.06))  # most cases are small, so that there are many; a fixed share is large
BEYOND = 0.08  # of the sizes of a small case go as far as those of a large one
KINDS = ("normal", "normal", "duplicates", "lattice", "line", "point", "clusters", "denormal", "huge", "large", "zeros")


class Draw(random.Random):
    """The random choices of one case; the same seed makes the same case on every machine."""

    def __init__(self, *seed: int | str) -> None:
        super().__init__("/".join(map(str, seed)))
        self.torch = torch.Generator().manual_seed(self.getrandbits(60))
        self.reach = self.choices([size for size, _ in REACHES], [share for _, share in REACHES])[0]

    def happens(self, probability: float) -> bool:
        return self.random() < probability

    def size(self, most: int = 257, least: int = 0) -> int:
        """Small numbers, and those around the widths of vectors and blocks."""
        reach = most if self.happens(BEYOND) else min(most, self.reach)
        return self.choice([size for size in SIZES if least <= size <= reach])

    def values(self, *shape: int, kind: str | None = None) -> Tensor:
        """float64 values of one of the `KINDS`."""
        kind = kind or self.choice(KINDS)
        x = torch.randn(shape, generator=self.torch, dtype=torch.float64)
        if kind == "duplicates" and x.dim() > 1 and x.shape[-2]:
            rows = torch.randint(0, 1 + x.shape[-2] // 3, (x.shape[-2],), generator=self.torch)
            x = x[..., rows, :]
        elif kind == "lattice":
            x = (x * 2).round()
        elif kind == "line" and x.dim() and x.shape[-1]:
            x = x[..., :1].expand(shape).contiguous()
        elif kind == "point" and x.numel():
            x = x.flatten()[:1].expand(x.numel()).view(shape).contiguous()
        elif kind == "clusters":
            x = x.round() + x * 1e-4
        elif kind == "denormal":
            x = x * self.choice([1e-40, 1e-44, 1e-310, 5e-324, 1e-7])
        elif kind == "huge":
            x = x * self.choice([1e18, 1e19, 1e20, 1e37, 6e4])
        elif kind == "large":
            x = x + self.choice([100.0, 1e4, 5e5])
        elif kind == "zeros":
            x = torch.zeros_like(x).copysign(x)
        return x

    def spoil(self, x: Tensor) -> Tensor:
        """Some entry becomes NaN or infinite."""
        if x.numel() and x.is_floating_point():
            x = x.contiguous().clone()
            for _ in range(self.choice([1, 1, 3])):
                x.view(-1)[self.randrange(x.numel())] = self.choice([float("nan"), float("inf"), float("-inf")])
        return x

    def form(self, x: Tensor) -> Tensor:
        """The same values with other strides, in a larger storage, or as they are."""
        choice = self.randrange(8)
        if choice == 0 and x.dim():  # a window with steps, poison around it
            fill = float("nan") if x.is_floating_point() else 77
            big = torch.full([2 * size + 3 for size in x.shape], fill, dtype=x.dtype)
            window = big[tuple(slice(1, 1 + 2 * size, 2) for size in x.shape)]
            return window.copy_(x)
        if choice == 1 and x.dim() >= 2:  # columns first
            return x.transpose(-1, -2).contiguous().transpose(-1, -2)
        if choice == 2 and x.dim() >= 2:  # any order of the dimensions in memory
            order = self.sample(range(x.dim()), x.dim())
            back = [order.index(i) for i in range(x.dim())]
            return x.permute(order).contiguous().permute(back)
        if choice == 3 and x.dim():  # the first columns of a wider table
            wide = torch.cat([x, torch.full_like(x[..., :1], 7).repeat(*[1] * (x.dim() - 1), 3)], -1)
            return wide[..., : x.shape[-1]]
        if choice == 4:  # an odd offset into the storage
            flat = torch.cat([x.new_zeros(1), x.reshape(-1)])
            return flat[1:].view(x.shape)
        return x

    def floats(self, *shape: int, dtype: torch.dtype, kind: str | None = None, nonfinite: float = 0.0) -> Tensor:
        """Values in a dtype and a form; spread over the batch from one cloud now and then."""
        x = self.values(*shape, kind=kind)
        largest = torch.finfo(dtype).max / 4
        x = x.clamp(-largest, largest).to(dtype)
        if self.happens(nonfinite):
            x = self.spoil(x)
        if x.dim() > 1 and x.shape[0] > 1 and self.happens(0.05):
            return x[:1].expand(x.shape)
        return self.form(x)
