"""AdaLoRA's update, its budget, and what is pruned by it."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from pointpeft import load_adapter
from pointpeft.methods.reparameterized.adalora import SVDLinear
from pointpeft.runs.config import FinetuneConfig
from pointpeft.runs.finetune import finetune
from tests.clouds import TINY, TINY_MODEL
from tests.methods.tools import cloud, make, stirred


def layers(model):
    return [part for part in model.backbone.modules() if isinstance(part, SVDLinear)]


def test_the_update_is_its_equation():
    layer = layers(stirred("adalora", rank=6, target_rank=2, alpha=12))[2]
    x = torch.randn(2, 5, layer.base_layer.in_features)
    w = layer.base_layer.weight + 12 / 6 * layer.p @ layer.lam.diag() @ layer.q
    torch.testing.assert_close(layer(x), x @ w.T + layer.base_layer.bias, rtol=1e-4, atol=1e-4)


def test_the_budget_falls_by_a_cubic_curve():
    method = make("adalora", rank=10, target_rank=2, warmup_steps=5, decay_steps=20).method
    assert [method.budget(step) for step in (0, 5, 15, 25, 99)] == [10, 10, 2 + 8 / 8, 2, 2]


def step(model, xyz, labels, optimizer):
    logits = model(xyz)
    loss = cross_entropy(logits, labels) + sum(model.method.losses(model, xyz, labels, logits).values())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    model.method.after_step(model)


def test_training_ends_at_the_target_budget_spread_by_importance():
    model = make("adalora", rank=4, target_rank=2, warmup_steps=2, decay_steps=6, interval=2).train()
    xyz, labels = cloud(4), torch.arange(4)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    for _ in range(10):
        step(model, xyz, labels, optimizer)
    ranks = torch.tensor([int((layer.lam != 0).sum()) for layer in layers(model)])
    assert ranks.sum() == 2 * len(ranks)
    assert len(ranks.unique()) > 1
    scores = torch.cat([layer.scores() for layer in layers(model)])
    alive = torch.cat([layer.lam != 0 for layer in layers(model)])
    assert scores[alive].min() >= scores[~alive].max()


def test_scores_are_running_means_of_sensitivities():
    layer = SVDLinear(torch.nn.Linear(4, 3), 2, 1.0)
    importance, uncertainty = torch.zeros(2), torch.zeros(2)
    for _ in range(3):
        layer.lam.data.normal_()
        layer.lam.grad = torch.randn(2)
        layer.observe(0.9)
        sensitivity = (layer.lam * layer.lam.grad).abs().detach()
        importance = 0.9 * importance + 0.1 * sensitivity
        uncertainty = 0.9 * uncertainty + 0.1 * (sensitivity - importance).abs()
    torch.testing.assert_close(layer.scores(), importance * uncertainty)


def test_orthogonal_factors_have_no_loss():
    layer = SVDLinear(torch.nn.Linear(8, 6), 3, 1.0)
    with torch.no_grad():
        layer.p.copy_(torch.linalg.qr(torch.randn(6, 3)).Q)
        layer.q.copy_(torch.linalg.qr(torch.randn(8, 3)).Q.T)
        assert layer.unorthogonality() < 1e-9
        layer.q *= 2
        assert layer.unorthogonality().item() == pytest.approx(3 * 9, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 4, "target_rank": 6}, "rank must be at least target_rank = 6, got 4"),
        ({"interval": 0}, "interval must be at least 1"),
        ({"beta": 1.0}, "beta must be"),
        ({"targets": ("attn.k",)}, "targets must be among"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make("adalora", **options)


def test_a_run_allocates_after_every_step(clouds_folder, tmp_path):
    schedule = ("rank=4", "target_rank=2", "warmup_steps=1", "decay_steps=2", "interval=1")
    config = FinetuneConfig(
        data=str(clouds_folder), method="adalora", set=(*TINY_MODEL[:-1], *schedule), output=tmp_path / "run",
        checkpoint="none", device="cpu", quiet=True, probe=False, select="last", **TINY,
    )  # fmt: skip
    result = finetune(config)
    model = load_adapter(result.folder / "adapter")
    batches = -(-result.clouds["train"] // TINY["batch_size"])
    assert model.backbone.steps == batches * TINY["epochs"]
    assert sum(int((layer.lam != 0).sum()) for layer in layers(model)) == 2 * len(layers(model))
