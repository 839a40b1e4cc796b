import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pointpeft.cli.commands.finetune import run
from pointpeft.data import load_dataset
from pointpeft.runs.baselines import kernel_outputs, measure_baselines, verdict
from pointpeft.runs.comparison.plan import run_config
from pointpeft.runs.config import CompareConfig, EvaluateConfig, FinetuneConfig
from pointpeft.runs.evaluate import evaluate, load_run
from pointpeft.runs.finetune import finetune
from pointpeft.runs.plan import ModelPlan
from pointpeft.tasks.batches import Clouds
from tests.clouds import TINY, TINY_MODEL

BACKBONE = tuple(option for option in TINY_MODEL if not option.startswith("rank"))
REACHED = {"majority": 0.3, "nearest_neighbor": 0.6, "shape": 0.7, "frozen": 0.8}


@pytest.fixture
def config(clouds_folder, tmp_path):
    shared = {"checkpoint": "none", "device": "cpu", "quiet": True, "output": tmp_path / "run"}
    return FinetuneConfig(data=str(clouds_folder), method="linear", set=BACKBONE, **shared, **TINY)


def test_linear_is_solved_on_all_clouds_and_kept_as_an_adapter(config):
    result = finetune(config)
    facts = json.loads((result.folder / "result.json").read_text())
    assert facts["clouds"] == {"train": 24, "test": 24}
    assert facts["selection"]["rule"] == "leave-one-out"
    assert facts["leave_one_out"]["clouds"] == 24
    assert (facts["augmentation"], facts["epochs"], facts["baselines"]) == ("none", 0, None)
    assert facts["test"]["overall_accuracy"] > 0.6  # three classes; random features and the shape
    assert evaluate(EvaluateConfig(run=result.folder, device="cpu", quiet=True)).test == facts["test"]
    model = load_run(result.folder, torch.device("cpu")).model
    assert (model.classifier, model.num_support, model.up_axis) == ("kernel", 24, "z")


def test_the_published_head_is_still_trained(config):
    result = finetune(replace(config, classifier="mlp"))
    assert (result.selection.rule, result.epochs) == (config.select, config.epochs)
    assert "classifier" not in result.model


def test_a_result_stands_beside_what_takes_seconds(config, capsys):
    adapted = replace(config, method="dapt", set=TINY_MODEL, epochs=1)
    assert run(adapted) == 0
    facts = json.loads((Path(adapted.output) / "result.json").read_text())
    assert facts["baselines"]["majority"] == pytest.approx(1 / 3, abs=1e-4)
    solved = finetune(replace(config, output=config.output.with_name("solved")))
    assert facts["baselines"]["frozen"] == solved.test["overall_accuracy"]  # the clouds held out are labelled, too
    printed = capsys.readouterr().out
    assert f"{facts['baselines']['frozen']:.2%} by a kernel classifier on the frozen features" in printed
    assert (
        f"{facts['baselines']['shape']:.2%} by a kernel classifier on shape"
        in (adapted.output / "report.html").read_text()
    )
    assert (facts["verdict"] is None) == (facts["test"]["overall_accuracy"] >= max(facts["baselines"].values()))
    assert facts["verdict"] is None or facts["verdict"] in printed


def test_baselines_are_what_they_say(config):
    train, test = (Clouds(load_dataset(config.data, split), 64) for split in ("train", "test"))
    plan = ModelPlan("point_mae_tiny", "dapt", "none", TINY_MODEL)
    outputs = {"num_classes": 3, "up_axis": "z", **kernel_outputs([train])}
    model = plan.build_probe(outputs)
    whole = measure_baselines(model, [train], train, 8, torch.device("cpu"))
    assert whole.nearest_neighbor == 1  # each cloud is its own neighbour
    halves = [train.subset(range(0, 24, 2)), train.subset(range(1, 24, 2))]
    assert measure_baselines(model, halves, test, 8, torch.device("cpu")).summary() == pytest.approx(
        measure_baselines(model, [train], test, 8, torch.device("cpu")).summary(), abs=0.05
    )


def test_a_verdict_names_what_is_better_and_a_way_out():
    assert verdict(0.8, REACHED) is None
    words = verdict(0.65, REACHED)
    assert words.index("frozen features and shape descriptors (80.0%)") < words.index("shape descriptors alone (70.0%)")
    assert "nearest" not in words
    assert "--method linear" in words


@pytest.mark.parametrize("method", ["dapt", "linear"])
def test_a_kernel_is_solved_on_features_of_whole_clouds_alone(config, method):
    with pytest.raises(ValueError, match="it needs --task classification, got part_segmentation"):
        finetune(replace(config, method=method, task="part_segmentation", classifier="kernel"))


def test_a_comparison_takes_both_heads():
    compared = CompareConfig(methods=("linear", "linear:classifier=mlp"))
    assert [run_config(compared, entry, 0, Path("x")).classifier for entry in compared.methods] == ["auto", "mlp"]
    with pytest.raises(ValueError, match="option classifier must be"):
        run_config(compared, "linear:classifier=tree", 0, Path("x"))


def test_runs_of_before_go_on_with_the_head_they_had():
    assert FinetuneConfig.upgraded({"command": "finetune", "method": "linear"})["classifier"] == "mlp"
    assert "classifier" not in FinetuneConfig.upgraded({"method": "linear"})  # what a user wrote
