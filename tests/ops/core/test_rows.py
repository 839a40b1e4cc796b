"""The CPU's passes over rows, at each vector level, against PyTorch in double precision and against each other.

Those of the adapters are in test_adapter.py.
"""

import pytest
import torch
import torch.nn.functional as F

from pointpeft.ops.core import library
from pointpeft.ops.core import rows as _rows
from tests.ops.frozen.fused import TOLERANCE, draw

pytestmark = pytest.mark.skipif(not library.compiled(), reason="the CPU library was not built")

SIZES = [(1, 1), (5, 15), (40, 16), (67, 33), (1030, 130)]


def rows(generator, *sizes, dtype=torch.float32):
    return [draw(generator, *size).to(dtype) for size in sizes]


def assert_close(actual, expected, dtype):
    allowed = TOLERANCE[dtype] * max(1.0, float(expected.detach().abs().max()))
    assert (actual.double() - expected).abs().max() <= allowed


def forward(x, gamma, beta, gelu):
    out = torch.empty_like(x)
    _rows.forward(x, gamma, beta, gelu, out)
    return [out]


def backward(grad, x, gamma, beta):
    dx = torch.empty_like(x)
    return [*_rows.backward(grad, x, gamma, beta, dx), dx]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("gelu", [False, True])
def test_scale_and_shift_equal_pytorch(size, dtype, gelu, cpu_level, generator):
    x, grad, gamma, beta = rows(generator, size, size, size[1:], size[1:], dtype=dtype)
    exact = [t.double().clone().requires_grad_() for t in (x, gamma, beta)]
    y = exact[1] * exact[0] + exact[2]
    y = F.gelu(y) if gelu else y
    dx, d_gamma, d_beta = torch.autograd.grad(y, exact, grad.double())
    assert_close(*forward(x, gamma, beta, gelu), y.detach(), dtype)
    actual = backward(grad, x, gamma, beta if gelu else None)
    for mine, expected in zip(actual, (d_gamma, d_beta, dx), strict=True):
        assert_close(mine, expected, dtype)


@pytest.mark.parametrize(("n", "size", "c"), [(1, 1, 1), (12, 3, 15), (64, 32, 130), (96, 1, 33), (0, 4, 8)])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_passes_over_patches_equal_pytorch(n, size, c, dtype, cpu_level, generator):
    x, shift, points, weight, bias = rows(generator, (n, c), (n // size, c), (n, 3), (c, 3), (c,), dtype=dtype)
    most, first = torch.empty_like(shift), torch.empty_like(x)
    _rows.patch_max(x, size, most)
    assert torch.equal(most, x.view(-1, size, c).amax(1))
    expected = torch.maximum(x.view(-1, size, c), -shift[:, None]).view(n, c)
    _rows.patch_clamp(x, size, shift)
    assert torch.equal(x, expected)
    _rows.first_layer(points, weight, bias, first)
    if n:
        assert_close(first, F.relu(F.linear(points.double(), weight.double(), bias.double())), dtype)


def test_passes_over_patches_keep_nan(cpu_level):
    x, shift, most = torch.zeros(6, 20), torch.zeros(2, 20), torch.empty(2, 20)
    x[1, 3] = x[3, 4] = x[5, 4] = shift[1, 7] = float("nan")
    _rows.patch_max(x, 3, most)
    assert torch.equal(most.isnan().nonzero(), torch.tensor([[0, 3], [1, 4]]))
    _rows.patch_clamp(x, 3, shift)
    assert x[1, 3].isnan()
    assert x[3:, 7].isnan().all()
    out = torch.empty(6, 2)
    points = torch.zeros(6, 3)
    points[2, 1] = float("nan")
    _rows.first_layer(points, torch.ones(2, 3), torch.zeros(2), out)
    assert torch.equal(out.isnan().any(1).nonzero()[:, 0], torch.tensor([2]))


def test_gelu_and_its_slope_are_accurate_over_the_whole_line(cpu_level):
    x = torch.linspace(-12, 12, 100_001)[:, None]
    one, zero = torch.ones(1), torch.zeros(1)
    exact = x.double().clone().requires_grad_()
    y = exact * 0.5 * torch.erfc(-exact / 2**0.5)
    (slope,) = torch.autograd.grad(y.sum(), exact)
    y = y.detach()
    got = forward(x, one, zero, True)[0].double()
    # Relative to the value, below zero too, where 1 + erf would cancel: the roundings of x²/2 in the exponent count.
    allowed = (5e-7 + 1e-7 * exact.detach() ** 2) * y.abs() + 1e-37
    assert ((got - y).abs() <= allowed).all()
    got = backward(torch.ones_like(x), x, one, zero)[2].double()
    assert (got - slope).abs().max() < 3e-7


def test_gelu_of_special_values(cpu_level):
    x = torch.tensor([[float("inf"), 0.0, -200.0, 200.0, float("nan")]])
    got = forward(x, torch.ones(5), torch.zeros(5), True)[0]
    assert got[0, 1] == 0
    assert got[0, 2].abs() < 1e-30
    assert got[0, 0] == float("inf")
    assert got[0, 3] == 200
    assert got[0, 4].isnan()


def test_the_gradient_may_be_written_over(cpu_level, generator):
    grad, x, gamma, beta = rows(generator, (67, 33), (67, 33), (33,), (33,))
    expected = backward(grad, x, gamma, beta)
    actual = _rows.backward(grad, x, gamma, beta, grad)
    assert all(torch.equal(a, e) for a, e in zip((*actual, grad), expected, strict=True))


def test_rows_may_lie_apart(cpu_level, generator):
    grad, x, gamma, beta, out = rows(generator, (67, 99), (67, 66), (33,), (33,), (67, 50))
    grad, x, out = grad[:, 33:66], x[:, 5:38], out[:, 10:43]
    expected = backward(grad.contiguous(), x.contiguous(), gamma, beta)
    actual = _rows.backward(grad, x, gamma, beta, out)
    assert all(torch.equal(a, e) for a, e in zip((*actual, out), expected, strict=True))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("gated", [False, True])
def test_norm_equals_pytorch(size, dtype, gated, cpu_level, generator):
    n, c = size
    x, grad, weight, bias, gate, d_gate = rows(generator, size, size, (c,), (c,), (c,), (n,), dtype=dtype)
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    d_gate = d_gate.to(sums)
    exact = [t.double().clone().requires_grad_() for t in (x, weight, bias, gate)]
    u = F.layer_norm(exact[0], (c,), *exact[1:3], 1e-2)
    loss = (u * grad.double()).sum() + (u @ exact[3] @ d_gate.double() if gated else 0)
    dx, d_weight, d_bias = torch.autograd.grad(loss, exact[:3], retain_graph=True)
    out, stats, value = _rows.norm(x, weight, bias, gate if gated else None, 1e-2)
    assert_close(out, u.detach(), dtype)
    if gated:
        assert_close(value, (u @ exact[3]).detach(), dtype)
    args = (gate, d_gate) if gated else (None, None)
    got_dx, (got_weight, got_bias, _) = _rows.norm_backward(grad, x, stats, weight, *args)
    assert_close(got_dx, dx, dtype)
    assert_close(got_weight, d_weight, dtype)
    assert_close(got_bias, d_bias, dtype)


STREAMS = [(d, d) for d in TOLERANCE] + [(torch.float32, torch.bfloat16), (torch.float32, torch.float16)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("stream", "short"), STREAMS)
@pytest.mark.parametrize("added", [False, True])
def test_norm_after_an_addition_equals_pytorch(size, stream, short, added, cpu_level, generator):
    _, c = size
    x, weight, bias = rows(generator, size, (c,), (c,), dtype=stream)
    (y,) = rows(generator, size, dtype=short)
    total, out = torch.empty_like(x), torch.empty(size, dtype=short)
    _rows.add_norm(x, y if added else None, weight, bias, 1e-2, total if added else None, out)
    exact = x.double() + (y.double() if added else 0)
    if added:
        assert_close(total, exact, stream)
        exact = total.double()
    assert_close(out, F.layer_norm(exact, (c,), weight.double(), bias.double(), 1e-2), short)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("stream", "short"), STREAMS)
@pytest.mark.parametrize("residual", [False, True])
def test_closing_adds_everything_up(size, stream, short, residual, cpu_level, generator):
    n, c = size
    a, z, bias, gamma, beta = rows(generator, size, size, (c,), (c,), (c,), dtype=short)
    (x,) = rows(generator, size, dtype=stream)
    (s,) = rows(generator, (n,), dtype=torch.float64 if short == torch.float64 else torch.float32)
    out = torch.empty_like(x)
    prompt = _rows.closing(a, bias, s, z, gamma, beta, x if residual else None, 1, out)
    value = a.double() + s.double()[:, None] * bias.double()
    expected = gamma.double() * z.double() + beta.double() + value + (x.double() if residual else 0)
    assert_close(out, expected, stream)
    assert_close(prompt, F.gelu(value).mean(0, keepdim=True), short)


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_all_levels_give_the_same_bits(size, gelu, cpu_level, generator, monkeypatch):
    n, c = size
    grad, x, gamma, beta, s = rows(generator, size, size, (c,), (c,), (n,))

    def run():
        out = [*forward(x, gamma, beta, gelu), *backward(grad, x, gamma, beta if gelu else None)]
        u, stats, gate = _rows.norm(x, gamma, beta, beta, 1e-5)
        dx, sums = _rows.norm_backward(grad, x, stats, gamma, beta, s)
        total, v, end = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
        _rows.add_norm(x, grad, gamma, beta, 1e-5, total, v)
        prompt = _rows.closing(grad, gamma, s, x, gamma, beta, x, 1, end)
        return [*out, u, stats, gate, dx, *sums, total, v, end, prompt]

    got = run()
    monkeypatch.setenv("POINTPEFT_CPU_LEVEL", "portable")
    assert all(torch.equal(mine, portable) for mine, portable in zip(got, run(), strict=True))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _rows.forward(torch.ones(3, 4), torch.ones(5), torch.ones(4), False, torch.ones(3, 4)), "gamma"),
        (lambda: _rows.forward(torch.ones(3, 4), torch.ones(4), torch.ones(4), False, torch.ones(3, 5)), "out"),
        (
            lambda: _rows.backward(torch.ones(4, 3).t(), torch.ones(3, 4), torch.ones(4), None, torch.ones(3, 4)),
            "grad",
        ),
        (lambda: _rows.patch_max(torch.ones(5, 4), 2, torch.ones(2, 4)), "size"),
        (lambda: _rows.patch_clamp(torch.ones(4, 4), 2, torch.ones(3, 4)), "shift"),
        (lambda: _rows.first_layer(torch.ones(4, 2), torch.ones(5, 3), torch.ones(5), torch.ones(4, 5)), "points"),
    ],
)
def test_bad_shapes_name_the_argument(call, message):
    with pytest.raises(ValueError, match=f"pointpeft: {message} must"):
        call()
