"""DyT: which tokens pass through the MLP, and the losses that teach it."""

import pytest
import torch
import torch.nn.functional as F

from pointpeft.methods.adapters.dyt import MixtureOfAdapters
from tests.methods.tools import block_input, cloud, make, stirred


@torch.no_grad()
def test_in_evaluation_exactly_the_chosen_tokens_pass_through_the_mlp():
    model = stirred("dyt")
    block = model.backbone.blocks[0]
    x, ctx = block_input(model)
    h = x + ctx.pos
    h = h + block.attn(block.norm1(h))
    keep = (h @ block.dispatcher.weight.T + block.dispatcher.bias) > 0
    keep[:, 0] = True  # the class token
    assert 0 < keep.sum() < keep.numel()
    rows = []
    hook = block.mlp.register_forward_hook(lambda module, args, out: rows.append(args[0].shape[:-1].numel()))
    out = block(x, ctx)
    hook.remove()
    assert rows == [int(keep.sum())]  # skipped tokens cost nothing
    expected = h + keep * block.mlp(block.norm2(h)) + 0.1 * block.adapter(h)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_training_draws_tokens_with_the_probability_of_the_logistic():
    model = stirred("dyt")
    block = model.backbone.blocks[0].train()
    block.dispatcher.weight.zero_()
    block.dispatcher.bias.fill_(0.8)
    x, ctx = block_input(model, batch=512)
    torch.manual_seed(0)
    mask = block.choose(x, ctx)
    assert torch.equal(mask[:, 0], torch.ones(512, 1))
    # P(logit + logistic noise > 0) = σ(logit), whatever the temperature; 8 192 draws, deviation 0.005.
    assert mask[:, 1:].mean().item() == pytest.approx(torch.sigmoid(torch.tensor(0.8)).item(), abs=0.025)


def test_gradients_pass_straight_through_to_the_dispatcher():
    model = stirred("dyt")
    block = model.backbone.blocks[0].train()
    x, ctx = block_input(model)
    block.choose(x, ctx)[:, 1:].sum().backward()
    assert block.dispatcher.weight.grad.abs().max() > 0


@torch.no_grad()
def test_losses_are_the_rate_the_full_pass_and_the_divergence():
    model = stirred("dyt", keep=0.25)
    labels = torch.tensor([0, 3])
    logits = model(cloud())
    assert set(model.aux_losses()) == {"rate"}
    losses = model.method.losses(model, cloud(), labels, logits)
    full = model.method.full_pass(model, cloud())
    p, q = F.softmax(full, -1), F.softmax(logits, -1)
    torch.testing.assert_close(losses["full"], F.cross_entropy(full, labels))
    weights = torch.tensor([1.0, 2.0, 0.5, 7.0, *[1.0] * (full.shape[1] - 4)])
    weighted = model.method.losses(model, cloud(), labels, logits, weights)
    torch.testing.assert_close(weighted["full"], F.cross_entropy(full, labels, weights))
    assert not torch.allclose(weighted["full"], losses["full"])
    torch.testing.assert_close(losses["distill"], (p * (p.log() - q.log())).sum(-1).mean(), rtol=1e-3, atol=1e-6)
    assert set(losses) == {"rate", "full", "distill"}
    assert not torch.allclose(full, logits)


@torch.no_grad()
def test_the_rate_counts_all_blocks():
    model = stirred("dyt", keep=0.25, distill=False)
    for i, block in enumerate(model.backbone.blocks):
        block.dispatcher.weight.zero_()
        block.dispatcher.bias.fill_(1.0 if i < 3 else -1.0)  # half of the six blocks keep all patches
    model(cloud())
    assert model.aux_losses()["rate"].item() == pytest.approx(2 * (0.5 - 0.25) ** 2)


@torch.no_grad()
def test_a_mixture_is_one_adapter_with_the_weights_mixed_per_cloud():
    torch.manual_seed(0)
    mixture = MixtureOfAdapters(96, 8, 3, 0.0)
    for parameter in mixture.parameters():
        parameter.normal_()
    x, _ = block_input(make("linear"))
    out = mixture(x)
    for b in range(2):
        alpha = torch.softmax(mixture.router(x[b].mean(0)), -1)
        down = sum(a * w for a, w in zip(alpha, mixture.down, strict=True))
        up = sum(a * w for a, w in zip(alpha, mixture.up, strict=True))
        expected = F.relu(x[b] @ down + alpha @ mixture.down_bias) @ up + alpha @ mixture.up_bias
        torch.testing.assert_close(out[b], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("option", "value"), [("keep", 0.0), ("experts", 0), ("rank", 0)])
def test_bad_options_are_named(option, value):
    with pytest.raises(ValueError, match=option):
        make("dyt", **{option: value})
