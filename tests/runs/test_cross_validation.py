import json
import math
from dataclasses import replace

import pytest
import torch

from pointpeft.cli.commands.finetune import run
from pointpeft.data import load_dataset
from pointpeft.methods import method_class, method_names
from pointpeft.runs.baselines import kernel_outputs, solve_classifier
from pointpeft.runs.config import EvaluateConfig, FinetuneConfig
from pointpeft.runs.cross_validation import FILE, best_epoch, folds_of
from pointpeft.runs.evaluate import evaluate
from pointpeft.runs.finetune import finetune
from pointpeft.runs.plan import ModelPlan, plan_finetune
from pointpeft.tasks.batches import Clouds
from pointpeft.tasks.inference import voted_logits
from tests.clouds import TINY, TINY_MODEL

FEW = TINY | {"epochs": 2}
BACKBONE = (*TINY_MODEL[:3], "num_groups=16", "group_size=8")  # of 16 patches each has nine others


@pytest.fixture
def config(clouds_folder, tmp_path):
    shared = {"checkpoint": "none", "device": "cpu", "quiet": True, "output": tmp_path / "run", "probe": False}
    return FinetuneConfig(data=str(clouds_folder), set=TINY_MODEL, classifier="kernel", select="cv", **shared, **FEW)


def test_folds_hold_every_cloud_once_and_a_share_of_every_class():
    labels = torch.tensor([0] * 5 + [1] * 2 + [2] * 7)
    folds = folds_of(labels, 3)
    assert torch.cat(folds).sort().values.tolist() == list(range(14))
    assert [len(fold) for fold in folds] == [7, 7]
    for label in range(3):
        shares = [int((labels[fold] == label).sum()) for fold in folds]
        assert max(shares) - min(shares) <= 1 <= min(shares)
    assert [fold.tolist() for fold in folds] == [fold.tolist() for fold in folds_of(labels, 3)]
    with pytest.raises(ValueError, match="at least 2 training clouds of every class, got 1 of class 1"):
        folds_of(torch.tensor([0, 0, 1]), 0)


def right(*hits):
    return torch.tensor(hits, dtype=torch.bool)


def test_an_epoch_is_kept_where_it_beats_none_by_more_than_chance():
    start = [1] * 10 + [0] * 10
    six_more = [1] * 16 + [0] * 4
    two_more = [1] * 11 + [1] * 1 + [0] * 8
    mixed = [0] * 4 + [1] * 12 + [0] * 4  # six won, four lost
    assert best_epoch(right(start, two_more, six_more), torch.tensor([1.0, 0.9, 0.8])) == 2
    assert best_epoch(right(start, mixed), torch.tensor([1.0, 0.5])) == 0
    assert best_epoch(right(start, start), torch.tensor([1.0, 0.5])) == 0
    assert best_epoch(right(start), torch.tensor([1.0])) == 0


def test_the_test_clouds_have_no_part_in_the_choice(config, clouds_folder, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "pointpeft.runs.cross_validation.voted_logits",
        lambda model, clouds, size: (asked.append(clouds), voted_logits(model, clouds, size))[1],
    )
    result = finetune(config)
    training = Clouds(load_dataset(str(clouds_folder), "train"), 64)
    assert {len(clouds) for clouds in asked} == {12}
    assert len(asked) == 2 * (1 + FEW["epochs"])  # before the first step, and after every epoch, of each fold
    every = [tuple(points.flatten().tolist()) for points in training.points]
    halves = [tuple(points.flatten().tolist()) for clouds in (asked[0], asked[-1]) for points in clouds.points]
    assert sorted(halves) == sorted(every)
    assert result.clouds == {"train": 24, "test": 24}  # nothing is held out of the last model
    assert len(result.cross_validation["accuracy"]) == 1 + FEW["epochs"]
    assert result.selection.test_set_used is False


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_run_trains_for_the_epochs_that_were_chosen(config, epoch, capsys):
    config.output.mkdir()
    chosen = {"epoch": epoch, "accuracy": [0.5, 0.75, 0.5], "loss": [1.0, 0.5, 2.0], "seconds": 1.0}
    (config.output / FILE).write_text(json.dumps(chosen))
    assert run(config) == 0
    facts = json.loads((config.output / "result.json").read_text())
    assert (facts["epochs_trained"], facts["selection"]["epoch"], facts["selection"]["rule"]) == (epoch, epoch, "cv")
    assert facts["training_seconds"] >= 1.0
    assert "50.00% before training" in capsys.readouterr().out
    assert evaluate(EvaluateConfig(run=config.output, device="cpu", quiet=True)).test == facts["test"]


@pytest.mark.parametrize("method", [name for name in method_names() if not method_class(name).packages])
def test_every_method_starts_from_a_solved_classifier(clouds_folder, method):
    training = Clouds(load_dataset(str(clouds_folder), "train"), 64)
    torch.manual_seed(0)
    options = (*BACKBONE, "rank=8") if "rank" in method_class(method).__dataclass_fields__ else BACKBONE
    outputs = {"num_classes": 3, "up_axis": "z", **kernel_outputs([training])}
    model = ModelPlan("point_mae_tiny", method, "none", options).build(outputs)
    solve_classifier(model, training, 8, torch.device("cpu"))
    logits = voted_logits(model, training, 8)
    assert (logits.argmax(1) == training.labels).float().mean() > 0.8
    model(training.fixed()[:6]).square().mean().backward()  # their cross-entropy is 0
    assert model.head.coefficients.grad.abs().sum() > 0
    trained = [p for name, p in model.named_parameters() if p.requires_grad and not name.startswith("head.")]
    assert not trained or any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)


def test_few_clouds_get_more_epochs_by_the_fewest_steps(config):
    plan = plan_finetune(replace(config, select="last", min_steps=10, batch_size=8))
    assert plan.recipe_for(24).epochs == math.ceil(10 / 3)
    assert plan.recipe_for(240).epochs == FEW["epochs"]
    result = finetune(replace(config, select="last", min_steps=10))
    assert (result.epochs, result.epochs_trained) == (4, 4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"patience": 3}, "patience must be None for select cv"),
        ({"task": "part_segmentation", "classifier": "auto"}, "select cv is for --task classification"),
        ({"min_steps": -1}, "min_steps must be at least 0, got -1"),
    ],
)
def test_what_cannot_be_cross_validated_is_said(config, change, words):
    with pytest.raises(ValueError, match=words):
        finetune(replace(config, **change))
