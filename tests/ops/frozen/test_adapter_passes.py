"""The CPU's passes of the adapters, at each vector level, against autograd in double precision and each other."""

import pytest
import torch
import torch.nn.functional as F

from pointpeft.ops.core import dropout, library
from pointpeft.ops.core import rows as _rows
from tests.ops.core.test_rows import SIZES, assert_close, rows
from tests.ops.frozen.fused import TOLERANCE

pytestmark = pytest.mark.skipif(not library.compiled(), reason="the CPU library was not built")


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 5, -1, 2**62 + 12345, -(2**63)])
def test_dropout_takes_the_mask_bit_for_bit(probability, seed, cpu_level):
    seed = torch.tensor(seed)
    z = torch.ones(301, 37)
    h = _rows.hidden(z, torch.ones(301), seed, probability)
    keep = dropout.mask(seed, z.numel(), probability).view_as(z)
    assert torch.equal(h != 0, keep)
    torch.testing.assert_close(h, keep * F.gelu(z) / (1 - probability))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("probability", [None, 0.3])
def test_the_bottleneck_and_its_gradients_equal_autograd(size, dtype, probability, cpu_level, generator):
    z, back, s = rows(generator, size, size, size[:1], dtype=dtype)
    s = s.to(torch.float64 if dtype == torch.float64 else torch.float32)
    seed = None if probability is None else torch.tensor(11)
    keep = 1.0 if seed is None else dropout.mask(seed, z.numel(), probability).view_as(z).double() / (1 - probability)
    exact, scale = (t.double().clone().requires_grad_() for t in (z, s))
    h = scale[:, None] * keep * F.gelu(exact)
    d_z, d_s = torch.autograd.grad(h, [exact, scale], back.double())
    arguments = (z, s, seed, probability or 0.0)
    assert_close(_rows.hidden(*arguments), h.detach(), dtype)
    got_z, bias, got_s = _rows.hidden_backward(back, *arguments)
    assert_close(got_z, d_z, dtype)
    assert_close(bias, d_z.sum(0), dtype)
    assert_close(got_s, d_s, dtype)


@pytest.mark.parametrize(("clouds", "tokens", "c"), [(0, 67, 33), (1, 1, 5), (3, 17, 16), (2, 130, 33)])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_output_and_its_gradients_equal_autograd(clouds, tokens, c, dtype, cpu_level, generator):
    n = tokens * max(1, clouds)
    a, up_bias, s, grad, to_prompt = rows(generator, (n, c), (c,), (n,), (n, c), (max(1, clouds), c), dtype=dtype)
    s = s.to(torch.float64 if dtype == torch.float64 else torch.float32)
    product, bias = (t.double().clone().requires_grad_() for t in (a, up_bias))
    out = product + s.double()[:, None] * bias
    loss = (out * grad.double()).sum()
    if clouds:
        prompt = F.gelu(out).view(clouds, tokens, c).mean(1)
        loss = loss + (prompt * to_prompt.double()).sum()
    d_out, d_bias = torch.autograd.grad(loss, [product, bias])
    mine = a.clone()
    got = _rows.output(mine, up_bias, s, clouds)
    assert_close(mine, out.detach(), dtype)
    assert got.shape == (clouds, c)
    if clouds:
        assert_close(got, prompt.detach(), dtype)
    # Backwards the pass begins at a, and leaves its whole gradient there.
    mine = a.clone()
    got_bias, to_s = _rows.gradient(grad, to_prompt if clouds else None, mine, up_bias, s)
    assert_close(got_bias, d_bias, dtype)
    assert_close(to_s, (d_out * bias).sum(-1).detach(), dtype)
    assert_close(mine, d_out if clouds else a.double(), dtype)


@pytest.mark.parametrize("size", SIZES)
def test_all_levels_give_the_same_bits(size, cpu_level, generator, monkeypatch):
    n, c = size
    grad, z, a, up_bias, s, prompt = rows(generator, size, size, size, (c,), (n,), (1, c))
    seed = torch.tensor(7)

    def run():
        b = a.clone()
        out = [_rows.hidden(z, s, seed, 0.3), *_rows.hidden_backward(grad, z, s, seed, 0.3)]
        out += [_rows.output(b, up_bias, s, 1), b.clone()]
        return [*out, *_rows.gradient(grad, prompt, b, up_bias, s), b]

    got = run()
    monkeypatch.setenv("POINTPEFT_CPU_LEVEL", "portable")
    assert all(torch.equal(mine, portable) for mine, portable in zip(got, run(), strict=True))


def test_clouds_that_do_not_divide_the_rows_are_named():
    with pytest.raises(ValueError, match="pointpeft: clouds must divide N = 3, got 2"):
        _rows.output(torch.ones(3, 4), torch.ones(4), torch.ones(3), 2)
