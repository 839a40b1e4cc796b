import json
from dataclasses import replace

import pytest
from torch.nn.modules.module import register_module_forward_pre_hook

from pointpeft import PointModel
from pointpeft.cli.main import main
from pointpeft.runs.config import EvaluateConfig, FinetuneConfig
from pointpeft.runs.evaluate import evaluate
from pointpeft.runs.finetune import finetune
from tests.clouds import TINY, TINY_MODEL, write_clouds


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluation")
    config = FinetuneConfig(
        data=str(write_clouds(root / "scans")),
        set=TINY_MODEL[:-1],
        checkpoint="none",
        select="test-best",
        method="full",
        probe=False,
        device="cpu",
        quiet=True,
        output=root / "run",
        **{**TINY, "epochs": 10, "lr": 1e-2},
    )
    return finetune(config)


def test_passes_augmentation_and_selection_are_part_of_the_result(run):
    plain = EvaluateConfig(run.folder, device="cpu", quiet=True, output=run.folder / "plain")
    facts = evaluate(plain)
    assert facts.test == run.test
    assert (facts.votes, facts.test_augment) == (1, "none")
    assert facts.selection["test_set_used"] is True
    voted = evaluate(replace(plain, votes=4))
    assert (voted.votes, voted.test_augment) == (4, "scale_translate")
    turned = evaluate(replace(plain, votes=4, test_augment="rotate"))
    assert turned.test_augment == "rotate"
    assert len({facts.test["loss"], voted.test["loss"], turned.test["loss"]}) == 3
    written = json.loads((run.folder / "plain" / "result.json").read_text())
    assert written["test_augment"] == "rotate"


def test_fewer_points_are_a_result_of_their_own(run):
    # What the model is given tells more than its losses: one that has learned so little loses as much on fewer points.
    given = []

    def watch(module, inputs):
        if isinstance(module, PointModel):
            given.append((inputs[0].shape[1], len(inputs[0])))

    watching = register_module_forward_pre_hook(watch)
    facts = evaluate(EvaluateConfig(run.folder, device="cpu", quiet=True, densities=(64, 32, 8)))
    watching.remove()
    whole = [(64, clouds) for _, clouds in given[: len(given) // 4]]
    assert given == whole + [(points, clouds) for points in (64, 32, 8) for _, clouds in whole]
    by_points = facts.by_points_per_cloud
    assert list(by_points) == ["64", "32", "8"]
    assert by_points["64"] == facts.test == run.test
    assert all(measured["clouds"] == facts.test["clouds"] for measured in by_points.values())
    for points in (7, 65):
        with pytest.raises(ValueError, match=f"densities must be between 8 and 64 points, got {points}"):
            evaluate(EvaluateConfig(run.folder, device="cpu", quiet=True, densities=(points,)))


def test_the_command_says_how_it_was_measured(run, capsys):
    assert main(["evaluate", str(run.folder), "--device=cpu", "--quiet", "--votes=2", "--densities", "64", "16"]) == 0
    text = capsys.readouterr().out
    assert "2 passes, test-time augmentation scale_translate" in text
    assert "with 16 points" in text
    assert "ON THE TEST SET" in text
