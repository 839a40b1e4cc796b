"""Fuzzes every operation: `python -m tests.hardening.fuzz.ops --seconds 120 --seed 0`.

A case draws an operation with arguments, now and then spoilt ones, and asks the kernels and the reference. Either both
raise ValueError, with a message that names an argument; or both answer: indices and copied values alike to the bit,
floating values and gradients as close to the reference in float64 as their dtype allows.
"""

import inspect
import math
import os
import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from pointpeft import _C, ops
from pointpeft.ops.core import products
from pointpeft.ops.core.library import force_backend
from tests.conftest import CPU_LEVELS
from tests.hardening.fuzz import fused_cases, point_cases  # noqa: F401
from tests.hardening.fuzz.case import CASES, Case, replaced, tensors_of
from tests.hardening.fuzz.draw import Draw
from tests.hardening.fuzz.driver import main

torch.set_num_threads(1)
warnings.filterwarnings("ignore", "std")
LEVELS = CPU_LEVELS[: 1 + CPU_LEVELS.index(_C.supported_cpu_level())]
LIMITS = (products._LEAST, products._FEWEST_ROWS)
# Rounding of a dtype, relative to the largest value of a result.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 6e-3}
ROUNDINGS = 8  # of the arguments, that a value may be off by where its terms cancel


class Failure(AssertionError):
    """A case that ended in neither a right result nor a clear error."""

    def __init__(self, group: str, text: str) -> None:
        super().__init__(text)
        self.group = group


# ---- spoilt arguments ----


def spoilt(draw: Draw, value: Any) -> Any:
    """A bad value for an argument: wrong shape, dtype, device, kind or range."""
    if isinstance(value, tuple):
        if draw.happens(0.2) and not hasattr(value, "_fields"):
            return draw.choice([value[:-1], (*value, value[0]), (), None])
        which = draw.randrange(len(value))
        items = [spoilt(draw, one) if i == which else one for i, one in enumerate(value)]
        return value._make(items) if hasattr(value, "_make") else tuple(items)
    if isinstance(value, Tensor):
        made = draw.randrange(11)
        if made == 0:
            return value.unsqueeze(0)
        if made == 1 and value.dim():
            return value[0] if len(value) else value.flatten()
        if made == 2:
            return value.to(draw.choice([torch.int64, torch.int32, torch.bool, torch.float64, torch.float16]))
        if made == 3:
            return value.to(torch.complex64)
        if made == 4 and value.dim():
            return value[..., :-1]
        if made == 5 and value.dim() > 1:
            return value[:, :-1]
        if made == 6 and value.dim():
            return torch.cat([value, value[:1]])
        if made == 7:
            return None if draw.happens(0.5) else value.tolist()
        if made == 8:
            return value.to("meta")
        if made == 9 and value.is_floating_point():
            return value.detach().requires_grad_()
        return draw.spoil(value) if value.is_floating_point() else value + draw.choice([-1, 1, 10**9, -(10**12)])
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return draw.choice([0, -1, value + 1, 10**6, 2**62, -(2**63), math.nan, True, "3", None, 1.5])
    if isinstance(value, str):
        return draw.choice(["", "none", 3])
    if value is None:
        return draw.choice([torch.zeros(1), torch.tensor([10**12]), 0])
    return value


# ---- the verdict ----


def answer(name: str, arguments: dict[str, Any], backend: str, draw: Draw, grads: list[Tensor] | None) -> Any:
    """Results, gradients, and the gradients of the results that these are of; or the ValueError."""
    learning = [t for _, t in tensors_of(arguments) if t.requires_grad]
    try:
        with force_backend(backend):
            result = flat(getattr(ops, name)(**arguments))
    except ValueError as error:
        return error
    if any(r.device.type == "meta" for r in result):
        return result, [], None
    if grads is None and learning:
        grads = [torch.randn(r.shape, generator=draw.torch, dtype=torch.float64) for r in result]
    return result, differentiate(result, learning, grads), grads


def flat(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def differentiate(results: list[Tensor], learning: list[Tensor], grads: list[Tensor] | None) -> list[Tensor]:
    pairs = [(r, g) for r, g in zip(results, grads or [], strict=False) if r.requires_grad]
    if not learning or not pairs:
        return []
    out, towards = [r for r, _ in pairs], [g.to(r.dtype) for r, g in pairs]
    found = torch.autograd.grad(out, learning, towards, allow_unused=True)
    return [torch.zeros_like(v) if g is None else g for g, v in zip(found, learning, strict=True)]


def in_double(name: str, value: Tensor) -> Tensor:
    if value.is_floating_point():
        return value.detach().double().requires_grad_(value.requires_grad)
    return value


def gelu(x: Tensor) -> Tensor:
    """GELU to the last digit: 1 + erf, as PyTorch computes it in float64 too, cancels below zero."""
    return 0.5 * x * torch.special.erfc(x * -math.sqrt(0.5))


@mock.patch("torch.nn.functional.gelu", gelu)
def judged(
    name: str,
    case: Case,
    results: list[Tensor],
    grads: list[Tensor] | None,
    nudge: Callable[..., Tensor] = lambda values, sums=False: values,
    keeps: bool = False,
    stored: bool = False,
) -> list[Tensor]:
    """Results and gradients in float64, of arguments, and sums inside, that `nudge` may move.

    With `keeps` the backward of a case with an `inside` reads the result as the operation has rounded it, with `stored`
    other values, too.
    """

    def moved(at: str, value: Tensor) -> Tensor:
        double = in_double(at, value)
        return in_double(at, nudge(double)) if double.is_floating_point() else double

    arguments = replaced(case.arguments, moved)
    if case.judge is not None:
        exact = case.judge(**arguments, result=results)
    elif case.inside is not None:
        kept = results[0].detach() if keeps else None
        exact = flat(case.inside(**arguments, nudge=partial(nudge, sums=True), kept=kept, stored=stored))
    else:
        exact = flat(getattr(ops, f"{name}_reference")(**arguments))
    learning = [t for _, t in tensors_of(arguments) if t.requires_grad]
    return [*exact, *differentiate(exact, learning, grads and [nudge(g) for g in grads])]


def unrest(exact: Callable[..., list[Tensor]], values: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """How far each value moves when all that is rounded moves by a rounding of its dtype: no method can do better.

    Where terms cancel (γx + β near zero, a sum over rows) this is far more than a rounding of the value.
    """
    generator = torch.Generator().manual_seed(0)

    def nudge(values: Tensor, sums: bool = False) -> Tensor:
        signs = torch.randint(0, 2, values.shape, generator=generator) * 2 - 1
        rounded_to = torch.promote_types(dtype, torch.float32) if sums else dtype
        return values * (1 + signs * torch.finfo(rounded_to).eps)

    most = [torch.zeros_like(v, dtype=torch.float64) for v in values]
    for _ in range(4):
        most = [torch.maximum(m, (n - v).detach().abs()) for m, n, v in zip(most, exact(nudge), values, strict=True)]
    return most


def equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or (a.is_floating_point() and bool(((a == b) | (a.isnan() & b.isnan())).all()))


def alike(mine: Tensor, reference: Tensor, dtype: torch.dtype, size: float) -> bool:
    """Whether `close` holds whatever the exact value is: the two lie within rounding of each other."""
    if not mine.numel():
        return True
    m, r = mine.detach().double(), reference.detach().double()
    return float((m - r).abs().max()) <= TOLERANCE[dtype] * max(size, float(r.abs().max()))


def excess(
    mine: Tensor, reference: Tensor, exact: Tensor, dtype: torch.dtype, size: float, target: Tensor | None = None
) -> Tensor:
    """How much farther each value is from the exact one than rounding and four times the reference's error explain.

    With a `target` it is how much farther from that, which has its share of the rounding: no more of it is explained.
    """
    m, r, e = mine.detach().double(), reference.detach().double(), exact.detach().double()
    if e.isnan().all() and m.isnan().all():
        return torch.zeros_like(e)
    off = (r - e).abs()
    reach, off = (float(t[t.isfinite()].max()) if t.isfinite().any() else 0.0 for t in (e.abs(), off))
    allowed = TOLERANCE[dtype] * max(size, reach) + 4 * off + torch.finfo(dtype).tiny
    away = (m - (e if target is None else target.detach())).abs()
    return (away - allowed).masked_fill(m == r, -allowed)  # infinite, both


def one(seed: int, number: int) -> tuple[str, str]:
    """Runs a case; gives the operation and how it ended."""
    draw = Draw("ops", seed, number)
    return run(draw, draw.choice(sorted(CASES)))


def run(draw: Draw, name: str, change: Callable[[str, Tensor], Tensor] | None = None) -> tuple[str, str]:
    """Runs a case of an operation, whose tensors `change` may change before."""
    level = draw.choice(LEVELS)
    if os.environ.get("POINTPEFT_CPU_LEVEL") != level:
        os.environ["POINTPEFT_CPU_LEVEL"] = level
    # Small products, which the cases are made of, take the way of large ones now and then.
    products._LEAST, products._FEWEST_ROWS = draw.choice([(0, 0), LIMITS])
    case = CASES[name](draw)
    if change is not None:
        case.arguments = replaced(case.arguments, change)
    case.arguments = replaced(
        case.arguments, lambda at, t: t.detach().requires_grad_() if at in case.learns and draw.happens(0.4) else t
    )
    if draw.happens(0.2):
        which = draw.choice(sorted(case.arguments))
        case.arguments[which] = spoilt(draw, case.arguments[which])
        case.tame = False
    try:
        return name, verdict(draw, name, case)
    except Exception as error:
        raise Failure(name, f"{describe(case.arguments)}\n{type(error).__name__}: {error}") from error


@cache
def words(name: str) -> tuple[str, ...]:
    """What an error of an operation may name."""
    kinds = (ops.AdapterWeights, ops.MlpWeights, ops.NormWeights, ops.PatchEmbedWeights)
    return *inspect.signature(getattr(ops, name)).parameters, *(field for kind in kinds for field in kind._fields)


def verdict(draw: Draw, name: str, case: Case) -> str:
    """Asks both backends and compares."""
    reference = answer(name, case.arguments, "reference", draw, None)
    grads = None if isinstance(reference, ValueError) else reference[2]
    mine = answer(name, case.arguments, "auto", draw, grads)
    if isinstance(mine, ValueError) or isinstance(reference, ValueError):
        if type(mine) is not type(reference):
            raise AssertionError(f"kernels: {mine!r}, reference: {reference!r}")
        for error in (mine, reference):
            if not any(argument in str(error) for argument in words(name)):
                raise AssertionError(f"the error names no argument: {error}")
        return "refused"
    compare(case, mine, reference, partial(judged, name, case, mine[0], grads))
    if draw.happens(0.02):
        trace(name, case.arguments, mine[0])
    return "equal"


def trace(name: str, arguments: dict[str, Any], results: list[Tensor]) -> None:
    """Without values the results have the same form."""
    shapes = flat(getattr(ops, name)(**replaced(arguments, lambda at, t: t.to("meta"))))
    for i, (traced, real) in enumerate(zip(shapes, results, strict=True)):
        if (traced.shape, traced.dtype, traced.device.type) != (real.shape, real.dtype, "meta"):
            raise AssertionError(f"result {i} is traced as {traced.dtype} {tuple(traced.shape)} on {traced.device}")


def compare(case: Case, mine: Any, reference: Any, exact: Callable[..., list[Tensor]]) -> None:
    for i, (m, r) in enumerate(zip(mine[0], reference[0], strict=True)):
        if m.shape != r.shape or m.dtype != r.dtype or m.device != r.device:
            raise AssertionError(f"result {i} is {m.dtype} {tuple(m.shape)}, needs {r.dtype} {tuple(r.shape)}")
        if i in case.exact and m.device.type != "meta" and not equal(m, r):
            raise AssertionError(f"result {i} differs in {int((m != r).sum())} of {m.numel()} places")
    for m, r in zip(mine[1], reference[1], strict=True):
        if m.shape != r.shape or m.dtype != r.dtype:
            raise AssertionError(f"a gradient is {m.dtype} {tuple(m.shape)}, needs {r.dtype} {tuple(r.shape)}")
    if not case.tame:
        return
    got, expected = [*mine[0], *mine[1]], [*reference[0], *reference[1]]
    kinds = [t.dtype for _, t in tensors_of(case.arguments) if t.is_floating_point()]
    kinds += [value for value in case.arguments.values() if isinstance(value, torch.dtype)]  # asked of the result
    shortest = max(kinds or [m.dtype for m in got if m.is_floating_point()], key=TOLERANCE.__getitem__, default=None)
    unsure = [
        i
        for i, (m, r) in enumerate(zip(got, expected, strict=True))
        if m.is_floating_point() and i not in case.exact and not alike(m, r, shortest, case.size)
    ]
    values = exact() if unsure else []
    beyond = {i: excess(got[i], expected[i], values[i], shortest, case.size) for i in unsure}
    suspects = [i for i, over in beyond.items() if not bool((over <= 0).all())]  # NaN is one
    moves = unrest(exact, values, shortest) if suspects else []
    if suspects and case.inside is not None:
        for stored in (False, True):  # a backward may have them in a wider type
            targets = exact(keeps=True, stored=stored)
            for i in suspects:
                over = excess(got[i], expected[i], values[i], shortest, case.size, targets[i])
                beyond[i] = beyond[i].minimum(over)
    for i in suspects:
        if not bool((beyond[i] <= ROUNDINGS * moves[i]).all()):
            m, e = got[i], values[i]
            worst = float((m.detach().double() - e.double()).abs().max())
            raise AssertionError(f"value {i} is off by {worst} of {float(e.detach().abs().max())}")


def describe(arguments: dict[str, Any]) -> str:
    def short(value: Any) -> str:
        if isinstance(value, Tensor):
            grad = " learns" if value.requires_grad else ""
            device = "" if value.device.type == "cpu" else f" {value.device}"
            return f"{value.dtype}{device} {tuple(value.shape)} strides {value.stride()}{grad}"
        if isinstance(value, tuple):
            return "(" + "; ".join(map(short, value)) + ")"
        return repr(value)[:60]

    return ", ".join(f"{name}={short(value)}" for name, value in arguments.items())


if __name__ == "__main__":
    main("tests.hardening.fuzz.ops", (__doc__ or "").splitlines()[0], one, 6 << 30, 60.0)
