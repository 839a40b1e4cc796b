"""Products with frozen weights on the CPU: right whichever library takes them, and what AMX is given."""

import pytest
import torch
import torch.nn.functional as F

from pointpeft.ops.core import products, rows
from tests.ops.products import SIZES, draw, linear, product


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 3.4e38])
@pytest.mark.parametrize("which", ["x", "weight"])
@pytest.mark.parametrize("transposed", [False, True])
def test_values_that_bfloat16_lacks_go_another_way(amx, value, which, transposed, generator, monkeypatch):
    monkeypatch.setattr(products, "_LEAST", 0)
    monkeypatch.setattr(products, "_FEWEST_ROWS", 0)
    x, weight, bias = draw(generator, 70, 50, 40)
    weight = weight.t().contiguous().t() if transposed else weight
    {"x": x, "weight": weight}[which][37, 49] = value
    assert product(x, weight, bias) is None
    torch.testing.assert_close(products.linear(x, weight, bias), F.linear(x, weight, bias), equal_nan=True)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("transposed", [False, True])
def test_a_weight_may_be_split_before_and_gelu_follow(amx, size, transposed, generator, monkeypatch):
    monkeypatch.setattr(products, "_LEAST", 0)
    monkeypatch.setattr(products, "_FEWEST_ROWS", 0)
    n, k, m = size
    x, weight, bias = draw(generator, n, k, m)
    gamma, beta = torch.randn(2, m, generator=generator)
    weight = weight.t().contiguous().t() if transposed else weight
    split = products.prepared(weight, n, "of a test")
    assert split.parts is not None
    plain = product(x, weight)
    assert torch.equal(products.linear(x, split, buffer=torch.empty(n, m)), plain)
    assert torch.equal(products.linear(x, split, bias), product(x, weight, bias))
    expected = plain.clone()
    rows.forward(plain, gamma, beta, True, expected)
    for form in (weight, split):
        got = products.linear_gelu(x, form, gamma, beta, buffer=torch.empty(n, m))
        assert torch.equal(got, expected)
    wide = torch.full((n, m + 2), 7.0)
    out = wide[:, 1:-1]
    assert linear(x, weight, None, bias, gamma, beta, out)
    torch.testing.assert_close(out, F.gelu(gamma * (x @ weight.t() + bias) + beta), rtol=1e-4, atol=1e-4)
    assert (wide[:, [0, -1]] == 7).all()


@pytest.mark.parametrize("rows", [1, 100, 511, 512, 2000])
def test_few_rows_and_many_give_the_same_product(rows, generator):
    x, weight, bias = draw(generator, rows, 64, 64)
    torch.testing.assert_close(products.linear(x, weight, bias), F.linear(x, weight, bias), rtol=1e-5, atol=1e-5)
    split = products.prepared(weight, rows, "of a test")
    torch.testing.assert_close(products.linear(x, split, bias), F.linear(x, weight, bias), rtol=1e-5, atol=1e-5)


def test_layouts_that_it_cannot_take_are_declined(amx, generator):
    x, weight, bias = draw(generator, 2000, 64, 64)
    out, scattered = torch.empty(2000, 64), weight.repeat_interleave(2, 0).repeat_interleave(2, 1)[::2, ::2]
    assert product(x.t().contiguous().t(), weight, bias, out) is None
    assert product(x, scattered, bias, out) is None
    assert product(x, weight, bias, out) is not None
    assert torch.equal(product(x, weight, bias.repeat_interleave(2)[::2]), out)


def test_a_lower_vector_level_takes_another_way_to_the_same_product(amx, generator, monkeypatch):
    monkeypatch.setenv("POINTPEFT_CPU_LEVEL", "avx512")
    x, weight, bias = draw(generator, 2000, 64, 64)
    assert product(x, weight, bias) is None
    assert products.prepared(weight, 2000, "of a test").parts is None
    got = products.linear_gelu(x, weight, bias, bias, buffer=torch.empty(2000, 64))
    torch.testing.assert_close(got, F.gelu(bias * (x @ weight.t()) + bias), rtol=1e-4, atol=1e-4)
