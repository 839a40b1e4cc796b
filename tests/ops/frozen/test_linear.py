"""Float32 products by AMX (csrc/frozen/_linear.cpp), against double precision."""

import pytest
import torch
import torch.nn.functional as F

from tests.ops.products import SIZES, draw, linear, product


def inside(matrix):
    """The same values inside a larger matrix of NaN."""
    return F.pad(matrix, (3, 5, 1, 2), value=float("nan"))[1:-2, 3:-5]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("layout", ["rows", "columns", "cut", "cut columns"])
def test_as_exact_as_float32(amx, size, biased, layout, generator):
    n, k, m = size
    x, weight, bias = draw(generator, n, k, m)
    if "columns" in layout:
        weight = weight.t().contiguous().t()
    if "cut" in layout:  # what lies around is not read
        x, weight = inside(x), inside(weight.t()).t() if "columns" in layout else inside(weight)
    wide = torch.full((n, m + 9), 7.0)
    got = product(x, weight, bias if biased else None, wide[:, 4 : 4 + m])
    exact = x.double() @ weight.double().t() + (bias.double() if biased else 0)
    # A product of parts that is missing, or added twice, costs 1e-6 at least; sums of 1500 terms lose 3e-7, as those of
    # a matrix library do.
    assert (got - exact).norm() <= (5e-8 + 1e-8 * k**0.5) * exact.norm()
    # And none is far off: each term is rounded, and so is the sum after it.
    terms = x.double().abs() @ weight.double().abs().t() + (bias.double().abs() if biased else 0)
    assert ((got - exact).abs() <= (k + 4) * 2.0**-24 * terms).all()
    assert (torch.cat([wide[:, :4], wide[:, 4 + m :]], 1) == 7).all()


def test_all_bits_of_the_factors_count(amx):
    # 1 + 2^-23 is 1, 0 and 2^-23 in parts, and 3 + 2^-22 needs the sign of a part; one term is rounded once.
    values = torch.tensor(
        [1 + 2**-23, 1 - 2**-24, 3 + 2**-22, 1 / 3, 16777215.0, -1e-20, 2**-100, 255.99998, 0.0, -0.0]
    )
    got = product(values[:, None], values[:, None])
    exact = values[:, None].double() * values.double()
    assert ((got - exact).abs() <= 1.01 * 2.0**-23 * exact.abs() + 2.0**-126).all()
    ones = torch.ones(1, 1)
    assert torch.equal(product(values[:, None], ones)[:, 0], values)  # the parts of a factor add up to it


def test_a_row_is_the_same_wherever_it_lies_and_on_any_number_of_threads(amx, generator):
    x, weight, bias = draw(generator, 601, 130, 200)
    expected = product(x, weight, bias)
    for rows in (slice(0, 1), slice(600, 601), slice(5, 300), slice(32, 64)):
        assert torch.equal(product(x[rows], weight, bias), expected[rows])
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 3, 7, 40):  # of the last some take other columns of the same rows
            torch.set_num_threads(number)
            assert torch.equal(product(x, weight, bias), expected)
            assert torch.equal(product(x[:50], weight, bias), expected[:50])
    finally:
        torch.set_num_threads(threads)


def test_largest_values_that_bfloat16_holds(amx):
    largest = torch.tensor([[torch.finfo(torch.bfloat16).max]])
    assert torch.equal(product(largest, torch.ones(1, 1)), largest)


def test_bad_arguments_are_refused(amx, generator):
    x, weight, bias = draw(generator, 8, 4, 6)
    out, parts = torch.empty(8, 6), torch.empty(3072, dtype=torch.bfloat16)
    for arguments, message in (
        ((x.double(), weight, None, bias, None, None, out), "x must be a matrix of float32"),
        ((x[0], weight, None, bias, None, None, out), "x must be a matrix of float32"),
        ((x[:, :3], weight, None, bias, None, None, out), "with 4 channels"),
        ((x, weight[0], None, bias, None, None, out), "weight must be a matrix"),
        ((x, weight, parts[1:], bias, None, None, out), "parts must be 3072 values"),
        ((x, weight, None, bias[:5], None, None, out), "bias must hold 6 values"),
        ((x, weight, None, None, bias, None, out), "gamma and beta"),
        ((x, weight, None, None, bias, bias.double(), out), "beta must hold 6 values of float32"),
        ((x, weight, None, bias, None, None, out[:7]), "out must be float32"),
        ((x, weight, None, bias, None, None, torch.empty(6, 8).t()), "channels side by side"),
    ):
        with pytest.raises(ValueError, match=message):
            linear(*arguments)
    with pytest.raises(ValueError, match="from a cache line on"):
        torch.ops.pointpeft._split_weight.default(weight, torch.empty(3080, dtype=torch.bfloat16)[8:])
