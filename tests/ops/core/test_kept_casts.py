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
    kept = library._casts[weight]
    applied(weight)
    assert library._casts[weight] is kept


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.mul_(2),
        lambda w: w.data.mul_(2),
        lambda w: setattr(w, "data", torch.full_like(w, 2)),
        lambda w: w.copy_(torch.full_like(w, 2)),
        lambda w: w.set_(torch.full_like(w, 2)),
        lambda w: w.numpy().fill(2),
        lambda w: torch._foreach_mul_([w.data], 2),
        lambda w: torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(w)).fill_(2),
    ],
)
def test_a_change_is_seen(change):
    weight = frozen(3, 40)
    before = applied(weight)
    with torch.no_grad():
        change(weight)
    assert torch.equal(applied(weight), 2 * before)


@pytest.mark.parametrize("place", [0, 1, 777, 99_998, 99_999])
def test_a_change_of_one_value_is_seen(place, cpu_level):
    weight = frozen(1, 100_000)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        frozen_linear(torch.ones(1, 100_000), weight)
        weight.numpy()[0, place] = 3
        assert library._cast(weight, torch.bfloat16)[0, place] == 3


def test_two_values_that_change_places_are_seen():
    weight = nn.Parameter(torch.arange(4000.0).view(40, 100).fmod(256), requires_grad=False)
    first = applied(weight)
    weight.data.copy_(weight.data.flip(0))
    assert torch.equal(applied(weight), first.flip(1))


def test_every_rounding_is_that_of_torch(cpu_level):
    bits = torch.randint(-(2**31), 2**31, (1 << 20,), generator=torch.Generator().manual_seed(0)).int()
    whole = bits.view(torch.float32)
    whole = torch.cat(
        [whole, torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 3.4e38, 1e-40, 1 + 2**-8, 1 + 3 * 2**-8])]
    )
    whole = whole[~whole.isnan()]
    cast = whole.to(torch.bfloat16)
    assert torch.ops.pointpeft._is_cast(whole, cast)
    for at in (0, 5000, len(whole) - 1):
        other = cast.clone()
        other.view(torch.int16)[at] ^= 1
        assert not torch.ops.pointpeft._is_cast(whole, other)


@pytest.mark.parametrize(
    ("whole", "cast", "name"),
    [
        (torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.bfloat16), "whole"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.float16), "cast"),
        (torch.zeros(3), torch.zeros(4, dtype=torch.bfloat16), "cast"),
        (torch.zeros(3, 4).T, torch.zeros(4, 3, dtype=torch.bfloat16), "contiguous"),
    ],
)
def test_the_comparison_refuses_what_it_cannot_compare(whole, cast, name):
    with pytest.raises(ValueError, match=name):
        torch.ops.pointpeft._is_cast(whole, cast)


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
    gc.collect()  # of those that other tests have left
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
