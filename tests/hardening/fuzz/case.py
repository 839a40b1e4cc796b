"""What a case of the operations' fuzzer is, and what all of them draw."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.hardening.fuzz.draw import Draw


@dataclass
class Case:
    """One call: the arguments in order, and what its result is held to."""

    arguments: dict[str, Any]
    exact: tuple[int, ...] = ()
    """Results that must equal the reference's to the bit; others are compared as floating values."""
    judge: Callable[..., Any] | None = None
    """The results in float64, from the arguments as float64 and the results; None for the reference itself."""
    learns: tuple[str, ...] = ()
    """Tensors that are differentiable, named as `tensors_of` names them."""
    tame: bool = True
    """Whether floating results can be compared: nothing overflows."""
    size: float = 0.0
    """Size of the values inside that cancel in the results, as a square of their mean does in a variance."""
    inside: Callable[..., Any] | None = None
    """In place of a judge, where a rounding inside can be larger than what is left of the terms that cancel behind it:
    the reference, of the arguments; of `nudge`, which moves sums by a rounding of the type they are summed in; of
    `kept`, None or the result that the backward reads, as the operation has rounded it; and of `stored`, whether the
    backward has other values inside rounded to its dtype, too."""


CASES: dict[str, Callable[[Draw], Case]] = {}


def case_of(function: Callable[[Draw], Case]) -> Callable[[Draw], Case]:
    CASES[function.__name__] = function
    return function


def tensors_of(arguments: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor with its name; one inside a tuple is `name[i]`."""
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, tuple):
            yield from ((f"{name}[{i}]", one) for i, one in enumerate(value) if isinstance(one, Tensor))


def replaced(arguments: dict[str, Any], change: Callable[[str, Tensor], Tensor]) -> dict[str, Any]:
    """The arguments with every tensor changed."""

    def new(name: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            return change(name, value)
        if isinstance(value, tuple):
            items = [new(f"{name}[{i}]", one) for i, one in enumerate(value)]
            return value._make(items) if hasattr(value, "_make") else tuple(items)
        return value

    return {name: new(name, value) for name, value in arguments.items()}


def largest(*tensors: Tensor) -> float:
    """The largest magnitude, NaN where there is one."""
    return max((float(t.detach().abs().max()) for t in tensors if t.numel()), default=0.0)


def wide(*tensors: Tensor) -> bool:
    """Whether squares of differences of these overflow or vanish in float32 (float64 for float64)."""
    most = largest(*tensors)
    least = 1e-15 if tensors[0].dtype != torch.float64 else 1e-140
    return not (most == 0 or least < most < (1e17 if tensors[0].dtype != torch.float64 else 1e150))


def near(*tensors: Tensor) -> bool:
    """Whether differences of the coordinates keep their digits: no cloud far from the origin."""
    return all(not t.numel() or largest(t) < 50 for t in tensors)


def tame(*tensors: Tensor) -> bool:
    """Whether all is finite, and neither huge nor minute."""
    return all(
        not t.numel() or (bool(torch.isfinite(t).all()) and largest(t) < 1e3) for t in tensors if t.is_floating_point()
    )


def layer(draw: Draw, dtype: torch.dtype, shapes: dict[Any, tuple[int, ...]]) -> dict[Any, Tensor]:
    """Normal weights of variance 1 / fan-in."""
    return {
        name: draw.form((draw.values(*shape, kind="normal") / max(1, shape[-1]) ** 0.5).to(dtype))
        for name, shape in shapes.items()
    }


def tokens(draw: Draw, dtype: torch.dtype, channels: int, dims: int | None = None) -> Tensor:
    dims = dims or draw.choice([1, 2, 3, 3, 4])
    shape = [draw.choice([0, 1, 2, 3]) if i == 0 else draw.size(33) for i in range(dims - 1)]
    kind = draw.choice(["normal", "normal", "normal", "zeros", "point", "denormal"])
    return draw.floats(*shape, channels, dtype=dtype, kind=kind, nonfinite=0.05)


def even(x: Tensor) -> bool:
    """Whether some row has hardly any variance: what a LayerNorm makes of it is nothing but rounding."""
    return x.shape[-1] <= 3 or not bool((x.double().std(-1) > 0.1).all())
