"""Binary AdaptFormer: weights of two values, trained through their rounding."""

import pytest
import torch
import torch.nn.functional as F

from pointpeft.methods.adapters.bi_adaptformer import EPS, codebook
from tests.methods.tools import block_input, make, same_at_start, stirred


def two_valued(weight):
    """μ ± 0.6745 σ, by the sign of w - μ."""
    mean, deviation = weight.mean(), weight.std()
    return mean + 0.6744897501960817 * deviation * torch.sign(weight - mean)


@torch.no_grad()
def test_a_block_is_its_equation():
    model = stirred("bi_adaptformer", rank=8, scale=0.7)
    block = model.backbone.blocks[0]
    x, ctx = block_input(model)
    h = x + ctx.pos
    h = h + block.attn(block.norm1(h))
    a = F.relu(h @ two_valued(block.down.weight).T) @ two_valued(block.up.weight).T
    expected = h + block.mlp(block.norm2(h)) + 0.7 * a
    torch.testing.assert_close(block(x, ctx), expected, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_a_weight_takes_as_many_values_as_its_bits_have():
    for bits in (1, 2, 4):
        layer = make("bi_adaptformer", bits=bits).backbone.blocks[0].down
        layer.weight.normal_(generator=torch.Generator().manual_seed(0))
        mean, deviation = layer.weight.mean(), layer.weight.std()
        used = layer.quantized()
        values = mean + deviation * torch.tensor(layer.values)
        distance = (used.flatten()[:, None] - values).abs()
        assert distance.amin(1).max() < 1e-5
        assert len(distance.argmin(1).unique()) == 2**bits
        # Every weight is rounded to the nearest value.
        nearest = ((layer.weight - mean) / (deviation + EPS)).flatten()[:, None] - torch.tensor(layer.values)
        assert torch.equal(distance.argmin(1), nearest.abs().argmin(1))


def test_the_codebook_has_the_least_expected_distance():
    x = torch.special.ndtri(torch.linspace(0, 1, 20_001, dtype=torch.float64)[1:-1])  # a normal variable's quantiles

    def distance(values):
        return (x[:, None] - torch.tensor(values, dtype=torch.float64)).abs().amin(1).mean().item()

    assert codebook(1)[0] == pytest.approx((-0.67449, 0.67449), abs=1e-5)
    for bits in (1, 2):
        values = codebook(bits)[0]
        best = distance(values)
        for i in range(len(values)):
            for step in (-0.05, 0.05):
                assert distance([v + step * (i == j) for j, v in enumerate(values)]) > best


def test_gradients_pass_the_rounding_and_reach_mean_and_deviation():
    layer = stirred("bi_adaptformer", rank=4).backbone.blocks[0].down
    generator = torch.Generator().manual_seed(0)
    upstream = torch.randn(layer.weight.shape, generator=generator)
    (gradient,) = torch.autograd.grad((layer.quantized() * upstream).sum(), layer.weight)
    # As of ŵ σ + μ with ŵ shifted by a constant to the rounded values.
    w = layer.weight.detach().clone().requires_grad_()
    mean, deviation = w.mean(), w.std()
    standard = (w - mean) / (deviation + EPS)
    code = torch.sign(standard.detach()) * 0.6744897501960817
    used = (standard + (code - standard).detach()) * deviation + mean
    (expected,) = torch.autograd.grad((used * upstream).sum(), w)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)
    assert (gradient != 0).all()


def test_it_starts_near_the_backbone():
    assert 0 < same_at_start("bi_adaptformer") < 0.02


@pytest.mark.parametrize(("option", "value"), [("rank", 0), ("bits", 0), ("bits", 9), ("dropout", 1.0)])
def test_bad_options_are_named(option, value):
    with pytest.raises(ValueError, match=option):
        make("bi_adaptformer", **{option: value})
