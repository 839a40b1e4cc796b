"""What the operations' fuzzer takes for rounding, and what for an error."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from pointpeft import ops
from pointpeft.ops.core import rows
from tests.hardening.fuzz.case import CASES, Case
from tests.hardening.fuzz.draw import Draw
from tests.hardening.fuzz.fused_cases import scaled_attended
from tests.hardening.fuzz.ops import compare, differentiate, gelu, judged

EPS = torch.finfo(torch.float32).eps


def judge(name, arguments, change):
    """Judges the reference's answer after `change`, beside the reference's own."""
    case = Case({at: torch.tensor(value) for at, value in arguments.items()})
    result = getattr(ops, f"{name}_reference")(**case.arguments)
    compare(case, ([change(result)], []), ([result], []), partial(judged, name, case, [result], None))


# γx + β = 1e-4: of the seven digits of its terms three are left.
CANCELS = {"x": [1.0], "scale": [1.0], "shift": [-0.9999]}


def test_terms_that_cancel_may_round():
    judge("scale_shift", CANCELS, lambda y: y + EPS / 2)
    with pytest.raises(AssertionError, match=r"value 0 is off by"):
        judge("scale_shift", CANCELS, lambda y: y + 40 * EPS)


def test_beside_them_no_other_value_may():
    arguments = {"x": [1.0, 1.0], "scale": [1.0, 1e-4], "shift": [-0.9999, 0.0]}
    judge("scale_shift", arguments, lambda y: y + torch.tensor([EPS, 0.0]))
    with pytest.raises(AssertionError, match=r"value 0 is off by"):
        judge("scale_shift", arguments, lambda y: y + torch.tensor([0.0, EPS]))


def test_nan_and_infinity_are_errors():
    for wrong in (torch.nan, torch.inf):
        with pytest.raises(AssertionError, match=r"value 0 is off by"):
            judge("scale_shift", CANCELS, lambda y, wrong=wrong: torch.full_like(y, wrong))


def test_the_tail_of_gelu_is_judged_by_its_digits():
    # PyTorch's, in float64 too, has no digit of gelu(-9) right.
    assert gelu(torch.tensor(-9.0, dtype=torch.float64)).item() == pytest.approx(-1.0157281e-18, rel=1e-6)
    double = torch.tensor([-5.232361707163842], dtype=torch.float64)
    exact = gelu(double)
    assert abs(torch.nn.functional.gelu(double) - exact) > 1e-10 * abs(exact)
    compiled = double[None].clone()
    rows.forward(compiled, torch.ones_like(double), torch.zeros_like(double), True, compiled)
    torch.testing.assert_close(compiled[0], exact, rtol=1e-13, atol=0.0)


SHORT_AND_LONG = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])


def random(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def values_alike(dtype):
    """Attention over values that differ by a rounding: of the gradients of queries and keys hardly more
    is left than the rounding of the result.
    """
    z = random(0, 3, 17, 3).to(dtype)
    scale, shift = torch.tensor([-0.41, -0.17, torch.finfo(dtype).eps]), torch.tensor([0.58, -0.55, -1.15625])
    arguments = {"z": z.requires_grad_(), "scale": scale.to(dtype), "shift": shift.to(dtype), "num_heads": 1}
    return Case(arguments, inside=scaled_attended)


GRAD = random(1, 3, 17, 1)


def judge_gradient(case, change=lambda dz: dz):
    """Judges the operation's gradient of z after `change`, beside an exact one."""
    z = case.arguments["z"]
    result = ops.attention(**case.arguments)
    (dz,) = differentiate([result], [z], [GRAD])
    exact = partial(judged, "attention", case, [result], [GRAD])
    reference = [value.to(z.dtype) for value in exact()]
    compare(case, ([result], [change(dz.double()).to(z.dtype)]), (reference[:1], reference[1:]), exact)


@SHORT_AND_LONG
def test_the_result_that_the_backward_of_attention_reads_is_rounded(dtype):
    case = values_alike(dtype)
    judge_gradient(case)
    with pytest.raises(AssertionError, match=r"value 1 is off by"):
        judge_gradient(replace(case, inside=None))


@SHORT_AND_LONG
@pytest.mark.parametrize("stored", [False, True])
def test_a_backward_may_store_the_scaled_values_or_not(dtype, stored):
    case = values_alike(dtype)
    z, scale, shift = (case.arguments[name].detach().double() for name in ("z", "scale", "shift"))
    result = ops.attention(**case.arguments).detach().double()
    y = scale * z + shift
    q, k, v = (y.to(dtype).double() if stored else y).split(1, -1)
    shares = (q @ k.mT).softmax(-1)
    scores = shares * (GRAD * v.mT - GRAD * result)
    dz = scale * torch.cat([scores @ k, scores.mT @ q, shares.mT @ GRAD], -1)
    judge_gradient(case, lambda _: dz)


@SHORT_AND_LONG
def test_no_error_of_such_a_gradient_passes_for_rounding(dtype):
    case = values_alike(dtype)

    def scaled(dz):
        return dz * (1.2 if dtype == torch.bfloat16 else 1.05)  # eight roundings of bfloat16 are 6 %

    def without_the_result(dz):  # share · gradient · value alone
        z, scale, shift = (case.arguments[name].detach().double() for name in ("z", "scale", "shift"))
        q, k, v = (scale * z + shift).split(1, -1)
        shares = (q @ k.mT).softmax(-1)
        lost = GRAD * (shares @ v)
        return dz + scale * torch.cat([lost * (shares @ k), shares.mT @ (lost * q), torch.zeros_like(v)], -1)

    def of_other_tokens(dz):
        return torch.cat([dz[..., :2], dz[..., 2:].roll(1, -2)], -1)

    for wrong in (scaled, without_the_result, of_other_tokens, torch.zeros_like):
        with pytest.raises(AssertionError, match=r"value 1 is off by"):
            judge_gradient(case, wrong)


@pytest.mark.parametrize("scaled", [False, True])
def test_attention_with_nothing_rounded_inside_is_the_reference(scaled):
    name, heads, width = "attention", 2, 12
    shapes = {"z": (2, 5, width)} | ({"scale": (width,), "shift": (width,)} if scaled else {})
    arguments = {at: random(i, *shape).requires_grad_() for i, (at, shape) in enumerate(shapes.items())}
    case = replace(CASES[name](Draw(0)), arguments={**arguments, "num_heads": heads})
    grads = [random(9, 2, 5, width // 3)]
    result = getattr(ops, f"{name}_reference")(**case.arguments)
    expected = [result, *differentiate([result], list(arguments.values()), grads)]
    for keeps in (False, True):
        for value, other in zip(judged(name, case, [result], grads, keeps=keeps), expected, strict=True):
            torch.testing.assert_close(value, other, rtol=1e-12, atol=1e-14)
