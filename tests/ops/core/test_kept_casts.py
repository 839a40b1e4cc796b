"""Casts of frozen parameters, which autocast on the CPU keeps: never those of other values."""

import copy
import gc

import pytest
import torch
from torch import nn

from pointpeft.ops import frozen_linear
from pointpeft.ops.core import library


def frozen(*size, fill=1.0):
    return nn.Parameter(torch.full(size, fill), requires_grad=False)


def applied(weight, dtype=torch.bfloat16):
    with torch.autocast("cpu", dtype):
        return frozen_linear(torch.ones(1, weight.shape[1]), weight)


def test_the_cast_is_made_once(monkeypatch):
    weight = frozen(3, 4)
    applied(weight)
    kept = library._casts[weight][1]
    applied(weight)
    assert library._casts[weight][1] is kept


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.mul_(2),
        lambda w: w.data.mul_(2),
        lambda w: setattr(w, "data", torch.full_like(w, 2)),
        lambda w: w.copy_(torch.full_like(w, 2)),
    ],
)
def test_a_change_is_seen(change):
    weight = frozen(3, 40)
    before = applied(weight)
    with torch.no_grad():
        change(weight)
    assert torch.equal(applied(weight), 2 * before)


def test_a_weight_that_trains_and_a_tensor_that_is_no_parameter_are_cast_anew():
    weight = nn.Parameter(torch.ones(3, 4))
    with torch.no_grad():
        applied(weight)
    applied(torch.ones(3, 4))
    assert weight not in library._casts


def test_another_type_is_another_cast():
    weight = frozen(3, 4)
    assert applied(weight).dtype == torch.bfloat16
    assert applied(weight, torch.float16).dtype == torch.float16


def test_what_inference_kept_serves_training():
    weight = frozen(3, 4)
    with torch.inference_mode():
        applied(weight)
    x = torch.ones(2, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        frozen_linear(x, weight).sum().backward()
    assert torch.equal(x.grad, torch.full((2, 4), 3.0))


def test_a_cast_lives_as_long_as_its_parameter():
    weight = frozen(3, 4)
    applied(weight)
    count = len(library._casts)
    twin = copy.deepcopy(weight)
    applied(twin)
    assert len(library._casts) == count + 1
    del weight, twin
    gc.collect()
    assert len(library._casts) == count - 1


def test_not_a_number_is_cast_anew_and_stays():
    weight = frozen(3, 4, fill=float("nan"))
    assert applied(weight).isnan().all()
    assert applied(weight).isnan().all()
