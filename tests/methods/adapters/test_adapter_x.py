"""Adapter-X: a shared library of adapters, routed by sub-token."""

import pytest
import torch
import torch.nn.functional as F

from pointpeft.methods.adapters.adapter_x import balance_loss
from tests.methods.tools import block_input, cloud, make, stirred


@torch.no_grad()
@pytest.mark.parametrize("dynamic", [False, True])
def test_each_sub_token_passes_through_the_expert_with_the_best_cosine(dynamic):
    model = stirred("adapter_x", noise=0.2, dynamic=dynamic)
    mixture = model.backbone.mixture
    x, _ = block_input(model)
    y, p = mixture(x)
    for b, t, h in ((0, 0, 0), (0, 5, 1), (1, 16, 0), (1, 3, 1)):
        part = x[b, t, 48 * h : 48 * (h + 1)]
        cosines = F.cosine_similarity((mixture.router.weight @ part)[None], mixture.embeddings, dim=-1)
        chances = torch.softmax(cosines / mixture.log_temperature.exp(), 0)
        i = int(chances.argmax())
        hidden = F.gelu(part @ mixture.down[i] + mixture.down_bias[i])
        expected = chances[i] * (hidden @ mixture.up[i] + mixture.up_bias[i])
        if dynamic:
            expected = expected * F.relu(mixture.scale.weight[i] @ part + mixture.scale.bias[i])
        torch.testing.assert_close(p[b, 2 * t + h], chances, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(y[b, t, 48 * h : 48 * (h + 1)], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_block_is_its_equation():
    model = stirred("adapter_x", noise=0.1)
    block = model.backbone.blocks[0]
    x, ctx = block_input(model)
    h = x + ctx.pos
    h = h + block.attn(block.norm1(h))
    n = block.norm2(h)
    a, p = model.backbone.mixture(n)
    prompt = block.prompt_generator.gamma * a.mean(1, keepdim=True) + block.prompt_generator.beta
    h = h + block.mlp(n) + a
    expected = torch.cat([h[:, :1], prompt, h[:, 1:]], 1)
    torch.testing.assert_close(block(x, ctx), expected, rtol=1e-4, atol=1e-4)
    assert ctx.num_prompts == 1
    torch.testing.assert_close(ctx.aux_losses["balance"], 0.01 / 6 * balance_loss(p))


def test_the_balance_loss_is_one_when_even_and_the_number_of_experts_when_one_takes_all():
    p = torch.full((1, 8, 4), 0.25) + 1e-6 * F.one_hot(torch.arange(8) % 4, 4)
    assert balance_loss(p).item() == pytest.approx(1, abs=1e-4)
    assert balance_loss(F.one_hot(torch.zeros(1, 8, dtype=torch.int64), 4).float()).item() == pytest.approx(4)


def test_all_blocks_share_one_library():
    model = make("adapter_x")
    assert all(block.mixture_of_all[0] is model.backbone.mixture for block in model.backbone.blocks)
    assert sum("mixture" in name for name, _ in model.named_parameters()) == 7
    model(cloud())
    assert set(model.aux_losses()) == {"balance"}


@pytest.mark.parametrize(("option", "value"), [("heads", 5), ("experts", 0), ("rank", 0)])
def test_bad_options_are_named(option, value):
    with pytest.raises(ValueError, match=option):
        make("adapter_x", **{option: value})
