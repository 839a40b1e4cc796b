"""Fuzzes every operation: `python -m tests.fuzz.ops --seconds 120 --seed 0`.

A case draws an operation with arguments, now and then spoilt ones, and asks the kernels and the reference. Either both
raise ValueError, with a message that names an argument; or both answer: indices and copied values alike to the bit,
floating values and gradients as close to the reference in float64 as their dtype allows.
"""

import inspect
import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pointpeft import _C, ops
from tests.fuzz.draw import FLOATS, Draw
from tests.fuzz.driver import main

torch.set_num_threads(1)
warnings.filterwarnings("ignore", "std")
LEVELS = ["portable", "avx2", "avx512"][: 1 + ["portable", "avx2", "avx512"].index(_C.supported_cpu_level())]
# Rounding of a dtype, relative to the largest value of a result.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 6e-3}


class Failure(AssertionError):
    """A case that ended in neither a right result nor a clear error."""

    def __init__(self, group: str, text: str) -> None:
        super().__init__(text)
        self.group = group


@dataclass
class Case:
    """One call: the arguments in order, and what its result is held to."""

    arguments: dict[str, Any]
    exact: tuple[int, ...] = ()
    """Results that must equal the reference's to the bit; others are compared as floating values."""
    judge: Callable[..., Any] | None = None
    """The results in float64, from the arguments as float64 and the results; None for the reference itself."""
    learns: tuple[str, ...] = ()
    """Arguments that are differentiable."""
    tame: bool = True
    """Whether floating results can be compared: nothing overflows."""
    size: float = 0.0
    """Size of the values that the results are sums of, where those may cancel; rounding is measured against it."""


CASES: dict[str, Callable[[Draw], Case]] = {}


def case_of(function: Callable[[Draw], Case]) -> Callable[[Draw], Case]:
    CASES[function.__name__] = function
    return function


def rows(points: Tensor, idx: Tensor) -> Tensor:
    """points[b, idx[b, ...]]."""
    return ops.gather_reference(points, idx)


def wide(*tensors: Tensor) -> bool:
    """Whether squares of differences of these overflow or vanish in float32 (float64 for float64)."""
    most = max((float(t.detach().abs().max()) for t in tensors if t.numel()), default=0.0)
    least = 1e-15 if tensors[0].dtype != torch.float64 else 1e-140
    return not (most == 0 or least < most < (1e17 if tensors[0].dtype != torch.float64 else 1e150))


def clouds(draw: Draw, dtype: torch.dtype, channels: int = 3) -> tuple[Tensor, Tensor]:
    """Queries and points to search, sometimes the same, rarely so many that a tree is built."""
    batch = draw.choice([0, 1, 1, 2, 3])
    m, n = draw.size(), draw.size()
    if draw.happens(0.01):
        batch, m, n = 1, draw.randrange(250, 300), draw.randrange(4090, 4300)
    kind = draw.choice([None, "normal", "lattice"])
    support = draw.floats(batch, n, channels, dtype=dtype, kind=kind, nonfinite=0.03)
    if draw.happens(0.3):
        return support, support
    return draw.floats(batch, m, channels, dtype=dtype, kind=kind, nonfinite=0.03), support


def lengths_of(draw: Draw, batch: int, least: int, n: int) -> Tensor | None:
    if draw.happens(0.7) or least > n:
        return None
    lengths = torch.tensor([draw.randint(least, n) for _ in range(batch)])
    return lengths.to(draw.choice([torch.int32, torch.int64]))


@case_of
def knn(draw: Draw) -> Case:
    dtype = draw.choice(FLOATS)
    channels = draw.choice([3, 3, 3, 1, 2, 4, 8, 16])
    query, support = clouds(draw, dtype, channels)
    n = support.shape[1]
    k = draw.choice([1, min(n, 16), n, draw.randint(1, max(n, 1))])
    arguments = {"query": query, "support": support, "k": k, "lengths": lengths_of(draw, len(support), k, n)}

    def judge(query, support, result, **_):
        return [(query[:, :, None] - rows(support, result[1])).square().sum(-1), result[1]]

    return Case(arguments, (1,), judge, ("query", "support"), not wide(query, support))


@case_of
def ball_query(draw: Draw) -> Case:
    query, support = clouds(draw, draw.choice(FLOATS))
    radius = draw.choice([0.1, 0.5, 1.0, 2, 1e-20, 1e30, math.inf, draw.uniform(0, 3)])
    k = draw.randint(1, max(1, support.shape[1]))
    return Case({"query": query, "support": support, "radius": radius, "k": k}, (0,))


def samples(draw: Draw) -> tuple[Tensor, int, dict[str, Any]]:
    dtype = draw.choice(FLOATS)
    batch, n = draw.choice([0, 1, 1, 2, 3]), draw.size()
    if draw.happens(0.01):
        batch, n = 1, draw.choice([2048, 4096, 4097, 8193])
    xyz = draw.floats(batch, n, 3, dtype=dtype, nonfinite=0.03)
    k = draw.choice([1, n if n < 1000 else 64, draw.randint(1, max(1, min(n, 300)))])
    lengths = lengths_of(draw, batch, k, n)
    low = n if lengths is None or not batch else int(lengths.min())
    start = draw.randrange(max(1, low))
    if draw.happens(0.3):
        start = torch.tensor([draw.randrange(max(1, low)) for _ in range(batch)], dtype=torch.int64)
    options = {"lengths": lengths, "start": start, "min_sq_norm": draw.choice([0.0, 0.0, 1e-3, 0.5, 1e9])}
    return xyz, k, options


@case_of
def furthest_point_sample(draw: Draw) -> Case:
    xyz, k, options = samples(draw)
    return Case({"xyz": xyz, "num_samples": k, **options}, (0,))


@case_of
def sample_and_group(draw: Draw) -> Case:
    xyz, k, options = samples(draw)
    n = xyz.shape[1]
    low = n if options["lengths"] is None or not len(xyz) else int(options["lengths"].min())
    size = draw.randint(1, max(1, min(low, 64)))

    def judge(xyz, result, **_):
        centers = rows(xyz, result[2])
        return [rows(xyz, result[3]) - centers[:, :, None], centers, result[2], result[3]]

    arguments = {"xyz": xyz, "num_groups": k, "group_size": size, **options}
    return Case(arguments, (0, 1, 2, 3), judge, ("xyz",), not wide(xyz))


def indices(draw: Draw, batch: int, shape: tuple[int, ...], n: int) -> Tensor:
    high = n + draw.happens(0.02)
    idx = torch.randint(-draw.happens(0.02), max(1, high), (batch, *shape), generator=draw.torch)
    return draw.form(idx)


@case_of
def gather(draw: Draw) -> Case:
    dtype = draw.choice([*FLOATS, torch.int64, torch.int32, torch.uint8, torch.int16, torch.bool])
    batch, n, channels = draw.choice([0, 1, 2, 3]), draw.size(65), draw.size(65)
    if dtype.is_floating_point:
        features = draw.floats(batch, n, channels, dtype=dtype, nonfinite=0.2)
    else:
        features = draw.form(torch.randint(0, 100, (batch, n, channels), generator=draw.torch).to(dtype))
    shape = draw.choice([(), (draw.size(33),), (draw.size(17), draw.size(17)), (2, draw.size(5), 3)])
    idx = indices(draw, batch, shape, n)
    learns = ("features",) if dtype.is_floating_point else ()
    return Case({"features": features, "idx": idx}, (0,), learns=learns, tame=tame(features))


@case_of
def aggregate_neighbors(draw: Draw) -> Case:
    dtype = draw.choice(FLOATS)
    batch, n, channels = draw.choice([0, 1, 2, 3]), draw.size(65), draw.size(100)
    features = draw.floats(batch, n, channels, dtype=dtype, nonfinite=0.05)
    idx = indices(draw, batch, (draw.size(33), draw.choice([0, 1, 2, 7, 16, 32, 33, 257])), n)
    mode = draw.choice(["max", "mean", "sum", "weighted"])
    weights = None
    if mode == "weighted":
        weights = draw.floats(*idx.shape, dtype=draw.choice([dtype, *FLOATS]), kind="normal", nonfinite=0.02)
    arguments = {"features": features, "idx": idx, "mode": mode, "weights": weights}
    calm = tame(features) and (weights is None or tame(weights))
    return Case(arguments, (0,) if mode == "max" else (), learns=("features", "weights"), tame=calm)


@case_of
def interpolate(draw: Draw) -> Case:
    dtype = draw.choice(FLOATS)
    query, support = clouds(draw, dtype)
    query, support = query[:, :65], support[:, :65]
    features = draw.floats(*support.shape[:2], draw.size(33), dtype=draw.choice([dtype, *FLOATS]), kind="normal")
    k = draw.choice(["all", 3, 1, draw.randint(1, max(1, support.shape[1]))])
    eps = draw.choice([1e-8, 1e-8, 1.0, 1e-3])

    def judge(query_xyz, support_xyz, support_features, k, eps, result, **_):
        every = support_xyz.shape[1]
        idx = ops.knn_reference(query.detach(), support.detach(), every if k == "all" else k)[1]
        weights = ((query_xyz[:, :, None] - rows(support_xyz, idx)).square().sum(-1) + eps).reciprocal()
        weights = weights / weights.sum(-1, keepdim=True)
        return [(rows(support_features, idx) * weights[..., None]).sum(2)]

    arguments = {"query_xyz": query, "support_xyz": support, "support_features": features, "k": k, "eps": eps}
    calm = not wide(query, support) and near(query, support)
    return Case(arguments, (), judge, ("support_features",), calm)


def near(query: Tensor, support: Tensor) -> bool:
    """Whether differences of the coordinates keep their digits: no cloud far from the origin."""
    return all(not t.numel() or float(t.abs().max()) < 50 for t in (query, support))


@case_of
def chamfer_distance(draw: Draw) -> Case:
    a, b = clouds(draw, draw.choice(FLOATS))
    if a is b:
        b = b.clone()
    return Case({"a": a, "b": b, "norm": draw.choice([1, 2])}, (), None, ("a", "b"), not wide(a, b) and near(a, b))


def tame(*tensors: Tensor) -> bool:
    """Whether all is finite, and neither huge nor minute."""
    return all(
        not t.numel() or (bool(torch.isfinite(t).all()) and float(t.detach().abs().max()) < 1e3)
        for t in tensors
        if t.is_floating_point()
    )


def layer(draw: Draw, dtype: torch.dtype, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
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


def elementwise(draw: Draw) -> Case:
    dtype, channels = draw.choice(FLOATS), draw.size(129)
    x = tokens(draw, dtype, channels)
    weights = layer(draw, dtype, {"gamma": (channels,), "beta": (channels,)})
    return Case({"x": x, **weights}, (), None, ("x", "gamma", "beta"), tame(x))


CASES["scale_shift"] = CASES["scale_shift_gelu"] = elementwise


@case_of
def layer_norm_scale_shift(draw: Draw) -> Case:
    dtype, channels = draw.choice(FLOATS), draw.size(129)
    names = ("weight", "bias", "gamma", "beta")
    x = tokens(draw, dtype, channels)
    size = (x.numel() / max(1, channels)) ** 0.5  # of a sum over the rows
    # Of one channel, or equal ones, the variance is nothing but rounding.
    calm = tame(x) and channels > 3 and bool((x.double().std(-1) > 0.1).all())
    return Case({"x": x, **layer(draw, dtype, dict.fromkeys(names, (channels,)))}, (), None, ("x", *names), calm, size)


@case_of
def scale_shift_attention(draw: Draw) -> Case:
    dtype = draw.choice(FLOATS)
    heads = draw.choice([1, 2, 3, 6])
    width = 3 * heads * draw.choice([1, 3, 8, 16])
    z = tokens(draw, dtype, width, 3)
    weights = layer(draw, dtype, {"gamma": (width,), "beta": (width,)})
    return Case({"z": z, **weights, "num_heads": heads}, (), None, ("z", "gamma", "beta"), tame(z))


@case_of
def scale_shift_mlp(draw: Draw) -> Case:
    dtype, c, h = draw.choice(FLOATS), draw.size(33), draw.size(65)
    shapes = {"w1": (h, c), "b1": (h,), "gamma1": (h,), "beta1": (h,)}
    shapes |= {"w2": (c, h), "b2": (c,), "gamma2": (c,), "beta2": (c,)}
    x = tokens(draw, dtype, c)
    learns = ("x", "gamma1", "beta1", "gamma2", "beta2")
    return Case({"x": x, **layer(draw, dtype, shapes)}, (), None, learns, tame(x), 1.0)


def adapter(draw: Draw, shapes: dict[str, tuple[int, ...]], c: int, dtype: torch.dtype) -> tuple[dict[str, Any], bool]:
    x = tokens(draw, dtype, c, 3)
    seed = torch.tensor(draw.getrandbits(62)) if draw.happens(0.7) else None
    training = draw.happens(0.5) and seed is not None  # without a seed no two calls drop alike
    dropout = draw.choice([0.0, 0.1, 0.9])
    arguments = {"x": x, **layer(draw, dtype, shapes), "dropout_p": dropout, "training": training, "seed": seed}
    return arguments, tame(x)


@case_of
def bottleneck_adapter(draw: Draw) -> Case:
    dtype, c, r = draw.choice(FLOATS), draw.size(65), draw.size(33)
    shapes = {"down_weight": (r, c), "down_bias": (r,), "up_weight": (c, r), "up_bias": (c,)}
    arguments, calm = adapter(draw, shapes, c, dtype)
    arguments |= {"multiplier": draw.choice([1.0, 0.1, 0.0, -2.0]), "activation": draw.choice(["gelu", "relu"])}
    return Case(arguments, (), None, ("x", *shapes), calm and arguments["activation"] == "gelu", 1.0)


@case_of
def dynamic_adapter(draw: Draw) -> Case:
    dtype, c, r = draw.choice(FLOATS), draw.size(65), draw.size(33)
    shapes = {"ln_weight": (c,), "ln_bias": (c,), "scale_weight": (1, c), "scale_bias": (1,)}
    shapes |= {"down_weight": (r, c), "down_bias": (r,), "up_weight": (c, r), "up_bias": (c,)}
    arguments, calm = adapter(draw, shapes, c, dtype)
    arguments["with_prompt"] = draw.happens(0.4)
    x = arguments["x"]
    # The scale's ReLU may fall to either side in a short dtype; equal channels have no variance but rounding.
    calm = calm and dtype.itemsize > 2 and c > 3 and bool((x.double().std(-1) > 0.1).all())
    return Case(arguments, (), None, ("x", *shapes), calm, 1.0)


@case_of
def patch_embed(draw: Draw) -> Case:
    dtype = draw.choice(FLOATS)
    h1, h2, h3, c = (draw.size(33) for _ in range(4))
    shapes = [(h1, 3), (h1,), (h2, h1), (h2,), (h3, 2 * h2), (h3,), (c, h3), (c,)]
    weights = ops.PatchEmbedWeights(*layer(draw, dtype, dict(enumerate(shapes))).values())
    patches = draw.floats(draw.choice([0, 1, 2]), draw.size(17), draw.size(33), 3, dtype=dtype, nonfinite=0.05)
    return Case(
        {"patches": patches, "weights": weights},
        tame=tame(patches),
        size=float(patches.abs().max()) if patches.numel() else 0.0,
    )


@case_of
def patch_embed_statistics(draw: Draw) -> Case:
    dtype = draw.choice(FLOATS)
    h1, h2, h3 = (draw.size(33, 1) for _ in range(3))
    patches = draw.floats(draw.choice([0, 1, 2]), draw.size(17), draw.size(33), 3, dtype=dtype, kind="normal")
    first = layer(draw, dtype, {"w1": (h1, 3), "b1": (h1,), "gamma1": (h1,), "beta1": (h1,)})
    second = layer(draw, dtype, {"w2": (h2, h1), "b2": (h2,), "w3": (h3, 2 * h2), "b3": (h3,)})
    # Over few points a first variance near zero divides by its own rounding.
    calm = patches.numel() > 3 * 64
    return Case({"patches": patches, **first, "eps1": 1e-5, **second}, tame=calm, size=1.0)


# ---- spoilt arguments ----


def spoilt(draw: Draw, value: Any) -> Any:
    """Another value in the place of an argument: wrong shape, dtype, kind or range."""
    if isinstance(value, Tensor):
        made = draw.randrange(9)
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


def answer(name: str, case: Case, arguments: dict[str, Any], backend: str, grads: list[Tensor] | None) -> Any:
    """Results and gradients, or the ValueError."""
    os.environ["POINTPEFT_BACKEND"] = backend
    learning = {k: v for k, v in arguments.items() if isinstance(v, Tensor) and v.requires_grad}
    try:
        result = getattr(ops, name)(**arguments)
    except ValueError as error:
        return error
    finally:
        os.environ["POINTPEFT_BACKEND"] = "auto"
    return flat(result), differentiate(flat(result), learning, grads)


def flat(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def differentiate(results: list[Tensor], learning: dict[str, Tensor], grads: list[Tensor] | None) -> list[Tensor]:
    pairs = [(r, g) for r, g in zip(results, grads or [], strict=False) if r.requires_grad]
    if not learning or not pairs:
        return []
    out, towards = [r for r, _ in pairs], [g.to(r.dtype) for r, g in pairs]
    found = torch.autograd.grad(out, list(learning.values()), towards, allow_unused=True)
    return [torch.zeros_like(v) if g is None else g for g, v in zip(found, learning.values(), strict=True)]


def in_double(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().double().requires_grad_(value.requires_grad)
    if isinstance(value, ops.PatchEmbedWeights):
        return ops.PatchEmbedWeights(*(in_double(t) for t in value))
    return value


def judged(name: str, case: Case, results: list[Tensor], grads: list[Tensor] | None) -> list[Tensor]:
    """Results and gradients in float64."""
    arguments = {k: in_double(v) for k, v in case.arguments.items()}
    if case.judge is not None:
        exact = case.judge(**arguments, result=results)
    else:
        exact = flat(getattr(ops, f"{name}_reference")(**arguments))
    learning = {k: v for k, v in arguments.items() if isinstance(v, Tensor) and v.requires_grad}
    return [*exact, *differentiate(exact, learning, grads)]


def equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or (a.is_floating_point() and bool(((a == b) | (a.isnan() & b.isnan())).all()))


def close(mine: Tensor, reference: Tensor, exact: Tensor, dtype: torch.dtype, size: float) -> bool:
    """As near to the exact value as rounding allows, or at most four times as far off as the reference."""
    if not mine.numel():
        return True
    m, r, e = mine.detach().double(), reference.detach().double(), exact.detach().double()
    if e.isnan().all() and m.isnan().all():
        return True
    allowed = (
        TOLERANCE[dtype] * max(size, float(e.abs().max())) + 4 * float((r - e).abs().max()) + torch.finfo(dtype).tiny
    )
    return float((m - e).abs().max()) <= allowed


def one(seed: int, number: int) -> tuple[str, str]:
    """Runs a case; gives the operation and how it ended."""
    draw = Draw("ops", seed, number)
    name = draw.choice(sorted(CASES))
    os.environ["POINTPEFT_CPU_LEVEL"] = draw.choice(LEVELS)
    case = CASES[name](draw)
    bad = draw.happens(0.2)
    if bad:
        which = draw.choice(sorted(case.arguments))
        case.arguments[which] = spoilt(draw, case.arguments[which])
        case.tame = False
    for argument in case.learns:
        value = case.arguments[argument]
        if isinstance(value, Tensor) and value.is_floating_point() and draw.happens(0.4):
            case.arguments[argument] = value.detach().requires_grad_()
    try:
        return name, verdict(draw, name, case)
    except Exception as error:
        raise Failure(name, f"{describe(case.arguments)}\n{type(error).__name__}: {error}") from error


def verdict(draw: Draw, name: str, case: Case) -> str:
    """Asks both backends and compares."""
    shapes = answer(name, case, case.arguments, "reference", None)
    grads = None
    if not isinstance(shapes, ValueError):
        grads = [torch.randn(r.shape, generator=draw.torch, dtype=torch.float64) for r in shapes[0]]
        reference = answer(name, case, case.arguments, "reference", grads)
    else:
        reference = shapes
    mine = answer(name, case, case.arguments, "auto", grads)
    if isinstance(mine, ValueError) or isinstance(reference, ValueError):
        if type(mine) is not type(reference):
            raise AssertionError(f"kernels: {mine!r}, reference: {reference!r}")
        names = [*inspect.signature(getattr(ops, name)).parameters, *ops.PatchEmbedWeights._fields]
        for error in (mine, reference):
            if not any(argument in str(error) for argument in names):
                raise AssertionError(f"the error names no argument: {error}")
        return "refused"
    compare(case, mine, reference, lambda: judged(name, case, mine[0], grads))
    return "equal"


def compare(case: Case, mine: Any, reference: Any, exact: Callable[[], list[Tensor]]) -> None:
    for i, (m, r) in enumerate(zip(mine[0], reference[0], strict=True)):
        if m.shape != r.shape or m.dtype != r.dtype:
            raise AssertionError(f"result {i} is {m.dtype} {tuple(m.shape)}, needs {r.dtype} {tuple(r.shape)}")
        if i in case.exact and not equal(m, r):
            raise AssertionError(f"result {i} differs in {int((m != r).sum())} of {m.numel()} places")
    for m, r in zip(mine[1], reference[1], strict=True):
        if m.shape != r.shape or m.dtype != r.dtype:
            raise AssertionError(f"a gradient is {m.dtype} {tuple(m.shape)}, needs {r.dtype} {tuple(r.shape)}")
    if not case.tame:
        return
    got, expected = [*mine[0], *mine[1]], [*reference[0], *reference[1]]
    kinds = [t.dtype for t in case.arguments.values() if isinstance(t, Tensor) and t.is_floating_point()]
    shortest = max(kinds or [m.dtype for m in got if m.is_floating_point()], key=TOLERANCE.__getitem__, default=None)
    for i, (m, r, e) in enumerate(zip(got, expected, exact(), strict=True)):
        if m.is_floating_point() and not close(m, r, e, shortest, case.size):
            worst = float((m.detach().double() - e.double()).abs().max())
            raise AssertionError(f"value {i} is off by {worst} of {float(e.detach().abs().max())}")


def describe(arguments: dict[str, Any]) -> str:
    def short(value: Any) -> str:
        if isinstance(value, Tensor):
            grad = " learns" if value.requires_grad else ""
            return f"{value.dtype} {tuple(value.shape)} strides {value.stride()}{grad}"
        return repr(value)[:60]

    return ", ".join(f"{name}={short(value)}" for name, value in arguments.items())


if __name__ == "__main__":
    main("tests.fuzz.ops", __doc__.splitlines()[0], one, 6 << 30, 60.0)
