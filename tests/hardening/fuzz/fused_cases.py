"""The cases of the adapters' operations and of the tokenizer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pointpeft import ops
from pointpeft.ops.frozen.attention import heads
from tests.hardening.fuzz.case import Case, case_of, even, largest, layer, tame, tokens
from tests.hardening.fuzz.draw import FLOATS, Draw


@case_of
def scale_shift(draw: Draw) -> Case:
    dtype, channels = draw.choice(FLOATS), draw.size(129)
    x = tokens(draw, dtype, channels)
    weights = layer(draw, dtype, {"scale": (channels,), "shift": (channels,)})
    return Case({"x": x, **weights}, (), None, ("x", "scale", "shift"), tame(x))


@case_of
def layer_norm(draw: Draw) -> Case:
    dtype, channels = draw.choice(FLOATS), draw.size(129)
    names = ("weight", "bias", "scale", "shift")
    x = tokens(draw, dtype, channels)
    calm = tame(x) and not even(x)
    weights = layer(draw, dtype, dict.fromkeys(names, (channels,)))
    if dtype.itemsize == 2 and draw.happens(0.4):  # as LayerNorm allows
        weights = {name: weight.float() if draw.happens(0.5) else weight for name, weight in weights.items()}
    if draw.happens(0.2):
        weights = {name: weights[name] for name in names[:2]}
    asked = {"dtype": draw.choice(FLOATS)} if draw.happens(0.3) else {}
    return Case({"x": x, **weights, **asked}, (), None, ("x", *names), calm)


def attended(y: Tensor, num_heads: int, nudge: Callable[[Tensor], Tensor], kept: Tensor | None) -> Tensor:
    """Attention, whose backward takes from `kept` what the rounding of the result has changed.

    The gradient of a score is share · (gradient · value - gradient · result). Where the values of all tokens are nearly
    the same its two terms cancel, but for the rounding of their sums, and of the result that every fused attention
    keeps for its backward. What more is wrong with a result is not taken over.
    """
    exact = ops.attention_reference(y, num_heads)
    if not y.numel():
        return exact
    mixed = exact.detach()
    error = nudge(mixed) - mixed
    q, k, v = heads(y, num_heads)
    if kept is not None:
        rounding = torch.finfo(kept.dtype).eps + 8 * torch.finfo(torch.promote_types(kept.dtype, torch.float32)).eps
        most = v.detach().abs().amax(-2, keepdim=True).expand(v.shape).transpose(1, 2).reshape(mixed.shape)
        error = error + (kept.double() - mixed).clamp(-rounding * most, rounding * most)
    total = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).logsumexp(-1).transpose(1, 2)  # its gradient: the shares
    nothing = (total - total.detach()).repeat_interleave(v.shape[-1], -1)
    return exact - error * nothing


def scaled_attended(
    z: Tensor,
    kept: Tensor | None,
    stored: bool,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    **others: Any,
) -> Tensor:
    if scale is None or shift is None:  # z is stored as it is
        return attended(z, kept=kept, **others)
    y = scale * z + shift
    if kept is not None and stored:
        y = y + (y.to(kept.dtype) - y).detach()
    return attended(y, kept=kept, **others)


def projected(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kept: Tensor | None,
    stored: bool,
    **others: Any,
) -> Tensor:
    z = ops.frozen_linear_reference(x, weight, bias)
    if kept is not None and stored:
        z = z + (z.to(kept.dtype) - z).detach()
    return scaled_attended(z, kept, stored, **others)


@case_of
def frozen_attention(draw: Draw) -> Case:
    dtype, c = draw.choice(FLOATS), draw.size(33)
    num_heads = draw.choice([1, 2, 3, 6])
    rows = 3 * num_heads * draw.choice([1, 3, 8, 16])
    shapes = {"weight": (rows, c), "bias": (rows,), "scale": (rows,), "shift": (rows,)}
    arguments = {"x": tokens(draw, dtype, c, 3), **layer(draw, dtype, shapes), "num_heads": num_heads}
    for names in (["bias"], ["scale", "shift"]):
        if draw.happens(0.3):
            arguments |= dict.fromkeys(names)
    learns = ("x", "scale", "shift") if draw.happens(0.5) else ()
    return Case(arguments, learns=learns, tame=tame(arguments["x"]), inside=projected)


@case_of
def attention(draw: Draw) -> Case:
    dtype = draw.choice(FLOATS)
    num_heads = draw.choice([1, 2, 3, 6])
    width = 3 * num_heads * draw.choice([1, 3, 8, 16])
    arguments = {"z": tokens(draw, dtype, width, 3), "num_heads": num_heads}
    if draw.happens(0.5):
        arguments |= layer(draw, dtype, {"scale": (width,), "shift": (width,)})
    learns = ("z", "scale", "shift") if draw.happens(0.7) else ()
    return Case(arguments, learns=learns, tame=tame(arguments["z"]), inside=scaled_attended)


SCALES = tuple(f"weights[{i}]" for i in range(4, 8))
"""The scales and shifts of an MLP, as `tensors_of` names them."""


def mlp_weights(draw: Draw, dtype: torch.dtype, c: int, h: int) -> ops.MlpWeights:
    """Maps with scales and shifts, one or both of which may be left out: folded into what stands before them."""
    shapes = [(h, c), (h,), (c, h), (c,), (h,), (h,), (c,), (c,)]
    weights = ops.MlpWeights(*layer(draw, dtype, dict(enumerate(shapes))).values())
    for i in (1, 2):
        if draw.happens(0.3):
            weights = weights._replace(**{f"scale{i}": None, f"shift{i}": None})
    return weights


@case_of
def frozen_mlp(draw: Draw) -> Case:
    if draw.happens(0.5):
        return adapted_mlp(draw)
    dtype, c, h = draw.choice(FLOATS), draw.size(33), draw.size(65)
    x, weights = tokens(draw, dtype, c), mlp_weights(draw, dtype, c, h)
    if draw.happens(0.4):
        weights = ops.MlpWeights(*weights[:4])
    learns = ("x", *SCALES) if draw.happens(0.7) else ()
    return Case({"x": x, "weights": weights}, (), None, learns, tame(x))


@case_of
def frozen_linear(draw: Draw) -> Case:
    dtype, c, o = draw.choice(FLOATS), draw.size(129), draw.size(129)
    shapes = {"weight": (o, c), "bias": (o,), "scale": (o,), "shift": (o,)}
    arguments = {"x": tokens(draw, dtype, c), **layer(draw, dtype, shapes)}
    for names in (["bias"], ["scale", "shift"]):
        if draw.happens(0.3):
            arguments |= dict.fromkeys(names)
    x = arguments["x"]
    return Case(arguments, (), None, ("x", "scale", "shift"), tame(x))


def adapted_mlp(draw: Draw) -> Case:
    """A frozen MLP with an adapter beside it."""
    dtype, c, h, r = draw.choice(FLOATS), draw.size(33), draw.size(65), draw.size(17)
    arguments, calm = with_dropout(draw, c, dtype)
    mixed = dtype.itemsize == 2 and draw.happens(0.3)
    norm = layer(draw, dtype, dict.fromkeys(ops.NormWeights._fields, (c,)))
    norm = {name: t.float() if mixed and draw.happens(0.6) else t for name, t in norm.items()}
    if draw.happens(0.2):
        norm |= {"scale": None, "shift": None}
    arguments |= {"weights": mlp_weights(draw, dtype, c, h), "norm": ops.NormWeights(**norm)}
    arguments |= {"adapter": adapter_weights(draw, dtype, c, r)}
    arguments |= {"norm_eps": draw.choice([1e-5, 1e-3]), "eps": draw.choice([1e-5, 1e-3])}
    learns = [f"norm[{i}]" for i in range(4)] + [f"adapter[{i}]" for i in range(8)] + ["x", "branch", *SCALES]
    x = arguments["x"]
    if draw.happens(0.4):
        arguments["branch"] = draw.floats(*x.shape, dtype=dtype, kind="normal")
        calm = calm and not even(x + arguments["branch"])
    # The scale's ReLU may fall to either side in a short dtype, and u = γ ⊙ LN(x) + β may be even where γ is.
    calm = calm and dtype.itemsize > 2 and c > 3 and not even(x)
    return Case(arguments, (), None, tuple(learns), calm)


def with_dropout(draw: Draw, c: int, dtype: torch.dtype) -> tuple[dict[str, Any], bool]:
    """Tokens and the options of dropout, and whether the tokens are tame."""
    x = tokens(draw, dtype, c, 3)
    seed = torch.tensor(draw.getrandbits(62)) if draw.happens(0.7) else None
    training = draw.happens(0.5) and seed is not None  # without a seed no two calls drop alike
    dropout = draw.choice([0.0, 0.1, 0.9])
    return {"x": x, "dropout_p": dropout, "training": training, "seed": seed}, tame(x)


def adapter_weights(draw: Draw, dtype: torch.dtype, c: int, r: int) -> ops.AdapterWeights:
    shapes = [(c,), (c,), (1, c), (1,), (r, c), (r,), (c, r), (c,)]
    return ops.AdapterWeights(*layer(draw, dtype, dict(enumerate(shapes))).values())


@case_of
def adapter(draw: Draw) -> Case:
    dtype, c, r = draw.choice(FLOATS), draw.size(65), draw.size(33)
    arguments, calm = with_dropout(draw, c, dtype)
    arguments |= {"weights": adapter_weights(draw, dtype, c, r), "with_prompt": draw.happens(0.4)}
    # The gate's ReLU may fall to either side in a short dtype.
    calm = calm and dtype.itemsize > 2 and not even(arguments["x"])
    return Case(arguments, (), None, ("x", *(f"weights[{i}]" for i in range(8))), calm)


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
        size=max(1.0, largest(patches)),  # biases are of that size
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
