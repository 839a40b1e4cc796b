"""What the operations' fuzzer takes for rounding, and what for an error."""

from functools import partial

import pytest
import torch

from pointpeft import ops
from tests.fuzz.case import Case
from tests.fuzz.ops import compare, gelu, judged

EPS = torch.finfo(torch.float32).eps


def judge(name, arguments, change):
    """Judges the reference's answer after `change`, beside the reference's own."""
    case = Case({at: torch.tensor(value) for at, value in arguments.items()})
    result = getattr(ops, f"{name}_reference")(**case.arguments)
    compare(case, ([change(result)], []), ([result], []), partial(judged, name, case, [result], None))


# γx + β = 1e-4: of the seven digits of its terms three are left.
CANCELS = {"x": [1.0], "gamma": [1.0], "beta": [-0.9999]}


@pytest.mark.parametrize("name", ["scale_shift", "scale_shift_gelu"])
def test_terms_that_cancel_may_round(name):
    judge(name, CANCELS, lambda y: y + EPS / 2)
    with pytest.raises(AssertionError, match=r"value 0 is off by"):
        judge(name, CANCELS, lambda y: y + 40 * EPS)


def test_beside_them_no_other_value_may():
    arguments = {"x": [1.0, 1.0], "gamma": [1.0, 1e-4], "beta": [-0.9999, 0.0]}
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
    one, zero = torch.ones_like(double), torch.zeros_like(double)
    torch.testing.assert_close(ops.scale_shift_gelu(double, one, zero), exact, rtol=1e-13, atol=0.0)
