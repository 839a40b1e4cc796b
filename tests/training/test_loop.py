import math
from itertools import count
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import nn

from pointpeft.tasks.batches import Clouds
from pointpeft.training import loop
from pointpeft.training.loop import (
    FLOOR,
    Recipe,
    make_accelerator,
    parameter_groups,
    restore_trained,
    train,
    trained_state,
)
from pointpeft.training.run_folder import RunFolder
from pointpeft.training.seeds import derive_seed
from tests.clouds import FakeDataset


class Small(nn.Module):
    """A model with a frozen part, a buffer that moves, dropout and a token."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(3, 8).requires_grad_(False)
        self.norm = nn.BatchNorm1d(8)
        self.token = nn.Parameter(torch.zeros(1, 8))
        self.dropout = nn.Dropout(0.3)
        self.out = nn.Linear(8, 2)

    def forward(self, points):
        return self.out(self.dropout(self.norm(self.frozen(points).amax(1) + self.token)))


def run(folder, epochs=4, accumulate=1, after_epoch=None, lr=1e-2, **recipe):
    clouds = Clouds(FakeDataset([20] * 12), num_points=16)
    accelerator = make_accelerator("cpu")
    torch.manual_seed(0)
    model = Small()

    def loss_of(model, points, labels):
        return {"loss": nn.functional.cross_entropy(model(points), labels)}

    def augment(points, generator):
        return points + 0.1 * torch.rand(points.shape, generator=generator)

    def batches(epoch):
        return clouds.batches(5, torch.Generator().manual_seed(derive_seed(0, epoch)))

    recipe = Recipe(epochs=epochs, lr=lr, accumulate=accumulate, **recipe)
    return model, train(accelerator, model, recipe, batches, loss_of, RunFolder(folder), after_epoch, augment=augment)


def test_the_rate_rises_linearly_and_falls_as_a_cosine():
    recipe = Recipe(epochs=100, lr=1e-3, warmup=0.1)
    assert recipe.rate(0) == FLOOR
    assert recipe.rate(0.05) == pytest.approx(5e-4, rel=1e-2)
    assert recipe.rate(0.1) == pytest.approx(1e-3)
    assert recipe.rate(0.55) == pytest.approx(5e-4, rel=1e-2)
    assert recipe.rate(1.0) == pytest.approx(FLOOR)
    assert recipe.rate(1.7) == pytest.approx(FLOOR)
    rates = [recipe.rate(i / 200) for i in range(20, 201)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0), ("lr", -1.0), ("lr", math.nan), ("clip", 0.0), ("ema", 1.0), ("patience", 0)],
)
def test_a_wrong_recipe_names_its_argument(name, value):
    with pytest.raises(ValueError, match=name):
        Recipe(**{"epochs": 1, "lr": 1e-3, name: value})


@pytest.mark.parametrize("name", ["lr", "weight_decay"])
def test_a_rate_is_finite(name):
    with pytest.raises(ValueError, match=f"{name} must be finite, got inf"):
        Recipe(**{"epochs": 1, "lr": 1e-3, name: math.inf})


def test_norms_biases_and_tokens_do_not_decay():
    model = Small()
    decay, plain = parameter_groups(model, 0.05)
    assert (decay["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    assert [id(p) for p in decay["params"]] == [id(model.out.weight)]
    expected = {id(p) for p in (model.norm.weight, model.norm.bias, model.token, model.out.bias)}
    assert {id(p) for p in plain["params"]} == expected


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(ValueError, match="nothing to train"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False), 0.05)


def test_training_changes_what_is_trainable_and_nothing_else(tmp_path):
    torch.manual_seed(0)
    before = Small().state_dict()
    model, state = run(tmp_path, epochs=20)
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {n for n in before if not n.startswith("frozen")}
    assert state.history[-1]["loss"] < state.history[0]["loss"]
    assert [row["epoch"] for row in state.history] == list(range(1, 21))
    assert all(isinstance(row["epoch"], int) for row in state.history)
    assert state.samples == 20 * 12
    assert not model.training


class Killed(Exception):
    pass


@pytest.mark.parametrize("when", [1, 2, 3])
def test_a_run_stopped_in_any_epoch_resumes_to_the_same_weights(tmp_path, when):
    whole, state = run(tmp_path / "whole", epochs=4, accumulate=2)

    def stop(model, state):
        if state.epoch == when:
            raise Killed
        return {}

    with pytest.raises(Killed):
        run(tmp_path / "part", epochs=4, accumulate=2, after_epoch=stop)
    torch.manual_seed(123)  # whatever the state of the generators is
    resumed, again = run(tmp_path / "part", epochs=4, accumulate=2)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    for first, second in zip(state.history, again.history, strict=True):
        assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_what_is_measured_and_kept_is_the_average_of_the_weights(tmp_path):
    measured = []
    decay, after = 0.8, []
    original = torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        original(self, *args, **kwargs)
        after.append(self.param_groups[0]["params"][0].detach().clone())  # out.weight

    with mock.patch.object(torch.optim.AdamW, "step", step):
        model, _ = run(
            tmp_path, epochs=2, ema=decay, after_epoch=lambda m, _: measured.append(m.out.weight.detach().clone()) or {}
        )
    expected = after[0]
    for number, weight in enumerate(after):
        expected = decay * expected + (1 - decay) * weight if number else weight
        if number == 2:  # three steps per epoch
            torch.testing.assert_close(measured[0], expected)
    torch.testing.assert_close(model.out.weight.detach(), expected)
    assert not torch.allclose(model.out.weight, after[-1])
    plain, _ = run(tmp_path / "plain", epochs=2)
    assert torch.equal(plain.out.weight, after[-1])  # the average changes nothing of the training


def test_a_run_stops_when_it_gets_no_better_and_resumes_to_the_same_end(tmp_path):
    def after_epoch(model, state):
        score = min(state.epoch, 2)
        if not state.best or score > state.best["score"]:
            state.best = {"epoch": state.epoch, "score": score}
        return {}

    whole, state = run(tmp_path / "whole", epochs=9, patience=3, after_epoch=after_epoch, ema=0.9)
    assert state.epoch == 5  # the second epoch was the best, and three followed
    calls = []

    def stop(model, state):
        calls.append(1)
        if len(calls) == 4:
            raise Killed
        return after_epoch(model, state)

    with pytest.raises(Killed):
        run(tmp_path / "part", epochs=9, patience=3, after_epoch=stop, ema=0.9)
    resumed, again = run(tmp_path / "part", epochs=9, patience=3, after_epoch=after_epoch, ema=0.9)
    assert again.epoch == 5
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_accumulated_batches_make_one_step(tmp_path):
    calls = []
    original = torch.optim.AdamW.step
    try:
        torch.optim.AdamW.step = lambda self, *a, **k: calls.append(1) or original(self, *a, **k)
        run(tmp_path, epochs=1, accumulate=2)  # 3 batches: a step after the second, and one for the rest
    finally:
        torch.optim.AdamW.step = original
    assert len(calls) == 2


def test_a_time_limit_ends_the_run_annealed(tmp_path, monkeypatch):
    ticks = count(step=1 / 64)  # an epoch reads the clock at its start, in each of 3 steps, and twice at its end
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    _, state = run(tmp_path, epochs=10**6, per_epoch=False, time_limit=52 / 64)
    assert state.epoch == 11  # in whose second step the time is over
    assert state.elapsed == 54 / 64
    assert state.history[-1]["lr"] == pytest.approx(FLOOR)


def test_a_diverged_run_says_so(tmp_path):
    with pytest.raises(ValueError, match="training diverged in epoch 1, step 2, at the learning rate"):
        run(tmp_path, lr=1e30, clip=1e30, weight_decay=0.0)


def test_the_state_of_another_model_is_refused():
    state = trained_state(Small())
    state.pop("token")
    with pytest.raises(ValueError, match="token"):
        restore_trained(Small(), state)


def test_an_unknown_device_is_an_error():
    with pytest.raises(ValueError, match="device must be"):
        make_accelerator("gpu7")
    with pytest.raises(ValueError, match="is not here"):
        make_accelerator("cuda:99")


def test_seeds_depend_on_every_part():
    seeds = {derive_seed(a, b) for a in (0, 1, 11) for b in (0, 1, "x")}
    assert len(seeds) == 9
    assert derive_seed(1, 12) != derive_seed(11, 2)
