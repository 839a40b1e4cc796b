"""Float32 products by AMX (csrc/_linear.cpp), against double precision."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from pointpeft.ops import _library, _matmul, _rows

SIZES = [(1, 1, 1), (32, 32, 32), (33, 31, 65), (5, 700, 40), (300, 100, 70), (577, 384, 96), (70, 1500, 33)]


def product(x, weight, bias=None, out=None):
    """The result, or None where it is not done here."""
    out = torch.full((len(x), len(weight)), float("nan")) if out is None else out
    return out if linear(x, weight, None, bias, None, None, out) else None


def linear(*arguments):
    return torch.ops.pointpeft._linear.default(*arguments)


@pytest.fixture
def amx(monkeypatch):
    if not _library.compiled():
        pytest.skip("the CPU library was not built")
    from pointpeft import _C

    if _C.supported_cpu_level() != "amx":
        pytest.skip("this processor has no AMX")
    monkeypatch.delenv("POINTPEFT_CPU_LEVEL", raising=False)


def draw(generator, n, k, m):
    return (torch.randn(shape, generator=generator) for shape in ((n, k), (m, k), (m,)))


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


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 3.4e38])
@pytest.mark.parametrize("which", ["x", "weight"])
@pytest.mark.parametrize("transposed", [False, True])
def test_values_that_bfloat16_lacks_go_another_way(amx, value, which, transposed, generator, monkeypatch):
    monkeypatch.setattr(_matmul, "_LEAST", 0)
    monkeypatch.setattr(_matmul, "_FEWEST_ROWS", 0)
    x, weight, bias = draw(generator, 70, 50, 40)
    weight = weight.t().contiguous().t() if transposed else weight
    {"x": x, "weight": weight}[which][37, 49] = value
    assert product(x, weight, bias) is None
    torch.testing.assert_close(_matmul.linear(x, weight, bias), F.linear(x, weight, bias), equal_nan=True)


def test_largest_values_that_bfloat16_holds(amx):
    largest = torch.tensor([[torch.finfo(torch.bfloat16).max]])
    assert torch.equal(product(largest, torch.ones(1, 1)), largest)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("transposed", [False, True])
def test_a_weight_may_be_split_before_and_gelu_follow(amx, size, transposed, generator, monkeypatch):
    monkeypatch.setattr(_matmul, "_LEAST", 0)
    monkeypatch.setattr(_matmul, "_FEWEST_ROWS", 0)
    n, k, m = size
    x, weight, bias = draw(generator, n, k, m)
    gamma, beta = torch.randn(2, m, generator=generator)
    weight = weight.t().contiguous().t() if transposed else weight
    split = _matmul.prepared(weight, n, "of a test")
    assert split.parts is not None
    plain = product(x, weight)
    assert torch.equal(_matmul.linear(x, split, buffer=torch.empty(n, m)), plain)
    assert torch.equal(_matmul.linear(x, split, bias), product(x, weight, bias))
    expected = plain.clone()
    _rows.forward(plain, gamma, beta, True, expected)
    for form in (weight, split):
        got = _matmul.linear_gelu(x, form, gamma, beta, buffer=torch.empty(n, m))
        assert torch.equal(got, expected)
    wide = torch.full((n, m + 2), 7.0)
    out = wide[:, 1:-1]
    assert linear(x, weight, None, bias, gamma, beta, out)
    torch.testing.assert_close(out, F.gelu(gamma * (x @ weight.t() + bias) + beta), rtol=1e-4, atol=1e-4)
    assert (wide[:, [0, -1]] == 7).all()


def test_only_where_it_is_faster_and_may_be_used(amx, generator, monkeypatch):
    asked = []
    op = torch.ops.pointpeft._linear
    monkeypatch.setattr(torch.ops.pointpeft, "_linear", SimpleNamespace(default=lambda *a: asked.append(1) or op(*a)))
    x, weight, bias = draw(generator, 2000, 64, 64)
    expected = F.linear(x, weight, bias)
    for got in (_matmul.linear(x, weight, bias), _matmul.linear(x[:100], weight, bias)):
        torch.testing.assert_close(got, expected[: len(got)], rtol=1e-5, atol=1e-5)
    assert len(asked) == 1
    assert _matmul.prepared(weight, 100, "of a test").parts is None
    out, scattered = torch.empty(2000, 64), weight.repeat_interleave(2, 0).repeat_interleave(2, 1)[::2, ::2]
    assert product(x.t().contiguous().t(), weight, bias, out) is None
    assert product(x, scattered, bias, out) is None
    assert product(x, weight, bias, out) is not None
    assert torch.equal(product(x, weight, bias.repeat_interleave(2)[::2]), out)
    monkeypatch.setenv("POINTPEFT_CPU_LEVEL", "avx512")
    assert product(x, weight, bias, out) is None
    assert _matmul.prepared(weight, 2000, "of a test").parts is None
    got = _matmul.linear_gelu(x, weight, bias, bias, buffer=out)
    torch.testing.assert_close(got, F.gelu(bias * (x @ weight.t()) + bias), rtol=1e-4, atol=1e-4)


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
        with pytest.raises(RuntimeError, match=message):
            linear(*arguments)
    with pytest.raises(RuntimeError, match="from a cache line on"):
        torch.ops.pointpeft._split_weight.default(weight, torch.empty(3080, dtype=torch.bfloat16)[8:])
