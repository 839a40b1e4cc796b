"""The cases of the adapters' operations and of the tokenizer."""

from typing import Any

import torch

from pointpeft import ops
from tests.fuzz.case import CASES, Case, case_of, even, largest, layer, tame, tokens
from tests.fuzz.draw import FLOATS, Draw


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
    calm = tame(x) and not even(x)
    weights = layer(draw, dtype, dict.fromkeys(names, (channels,)))
    if dtype.itemsize == 2 and draw.happens(0.4):  # as LayerNorm allows
        weights = {name: weight.float() if draw.happens(0.5) else weight for name, weight in weights.items()}
    return Case({"x": x, **weights}, (), None, ("x", *names), calm)


def cancelled(y: torch.Tensor, gamma: float = 1.0) -> float:
    """Size of what cancels in the gradients of queries and keys where all tokens are equal: a sum over the tokens of
    values times keys, of which rounding errors are left that no rounding of the arguments shows. 0 where some differ.
    """
    if y.numel() == 0 or y.shape[1] == 1:
        return 0.0
    most = float(y.abs().amax())
    return gamma * most * most if float((y.amax(1) - y.amin(1)).amax()) <= 1e-2 * most else 0.0


@case_of
def scale_shift_attention(draw: Draw) -> Case:
    dtype = draw.choice(FLOATS)
    heads = draw.choice([1, 2, 3, 6])
    width = 3 * heads * draw.choice([1, 3, 8, 16])
    z = tokens(draw, dtype, width, 3)
    weights = layer(draw, dtype, {"gamma": (width,), "beta": (width,)})
    gamma, beta = (weights[name].double() for name in ("gamma", "beta"))
    size = cancelled(gamma * z.double() + beta, largest(gamma))
    return Case({"z": z, **weights, "num_heads": heads}, (), None, ("z", "gamma", "beta"), tame(z), size)


@case_of
def attention(draw: Draw) -> Case:
    dtype = draw.choice(FLOATS)
    heads = draw.choice([1, 2, 3, 6])
    z = tokens(draw, dtype, 3 * heads * draw.choice([1, 3, 8, 16]), 3)
    learns = ("z",) if draw.happens(0.5) else ()
    return Case({"z": z, "num_heads": heads}, (), None, learns, tame(z), cancelled(z.double()))


@case_of
def scale_shift_mlp(draw: Draw) -> Case:
    dtype, c, h = draw.choice(FLOATS), draw.size(33), draw.size(65)
    shapes = {"w1": (h, c), "b1": (h,), "gamma1": (h,), "beta1": (h,)}
    shapes |= {"w2": (c, h), "b2": (c,), "gamma2": (c,), "beta2": (c,)}
    x = tokens(draw, dtype, c)
    learns = ("x", "gamma1", "beta1", "gamma2", "beta2")
    return Case({"x": x, **layer(draw, dtype, shapes)}, (), None, learns, tame(x))


@case_of
def frozen_mlp(draw: Draw) -> Case:
    dtype, c, h = draw.choice(FLOATS), draw.size(33), draw.size(65)
    x = tokens(draw, dtype, c)
    maps = layer(draw, dtype, {"w1": (h, c), "b1": (h,), "w2": (c, h), "b2": (c,)})
    return Case({"x": x, **maps}, (), None, ("x",) if draw.happens(0.5) else (), tame(x))


@case_of
def frozen_linear(draw: Draw) -> Case:
    dtype, c, o = draw.choice(FLOATS), draw.size(129), draw.size(129)
    shapes = {"weight": (o, c), "bias": (o,), "gamma": (o,), "beta": (o,)}
    arguments = {"x": tokens(draw, dtype, c), **layer(draw, dtype, shapes)}
    for names in (["bias"], ["gamma", "beta"]):
        if draw.happens(0.3):
            arguments |= dict.fromkeys(names)
    x = arguments["x"]
    return Case(arguments, (), None, ("x", "gamma", "beta"), tame(x))


@case_of
def adapted_mlp(draw: Draw) -> Case:
    dtype, c, h, r = draw.choice(FLOATS), draw.size(33), draw.size(65), draw.size(17)
    arguments, calm = adapter(draw, {}, c, dtype)
    mixed = dtype.itemsize == 2 and draw.happens(0.3)
    shapes = {
        "norm": [(c,)] * 4,
        "mlp": [(h, c), (h,), (h,), (h,), (c, h), (c,), (c,), (c,)],
        "adapter": [(c,), (c,), (1, c), (1,), (r, c), (r,), (c, r), (c,)],
    }
    for name, each in shapes.items():
        made = layer(draw, dtype, dict(enumerate(each))).values()
        arguments[name] = tuple(t.float() if mixed and name == "norm" and draw.happens(0.6) else t for t in made)
    arguments |= {"norm_eps": draw.choice([1e-5, 1e-3]), "eps": draw.choice([1e-5, 1e-3])}
    learns = [f"{name}[{i}]" for name in ("norm", "adapter") for i in range(len(shapes[name]))]
    learns += ["x", "mlp[2]", "mlp[3]", "mlp[6]", "mlp[7]"]
    x = arguments["x"]
    # The scale's ReLU may fall to either side in a short dtype, and u = γ ⊙ LN(x) + β may be even where γ is.
    calm = calm and dtype.itemsize > 2 and c > 3 and not even(x)
    return Case(arguments, (), None, tuple(learns), calm)


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
    return Case(arguments, (), None, ("x", *shapes), calm and arguments["activation"] == "gelu")


@case_of
def dynamic_adapter(draw: Draw) -> Case:
    dtype, c, r = draw.choice(FLOATS), draw.size(65), draw.size(33)
    shapes = {"ln_weight": (c,), "ln_bias": (c,), "scale_weight": (1, c), "scale_bias": (1,)}
    shapes |= {"down_weight": (r, c), "down_bias": (r,), "up_weight": (c, r), "up_bias": (c,)}
    arguments, calm = adapter(draw, shapes, c, dtype)
    arguments["with_prompt"] = draw.happens(0.4)
    x = arguments["x"]
    # The scale's ReLU may fall to either side in a short dtype.
    calm = calm and dtype.itemsize > 2 and not even(x)
    return Case(arguments, (), None, ("x", *shapes), calm)


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
