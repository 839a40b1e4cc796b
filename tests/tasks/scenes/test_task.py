import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pointpeft import create_model
from pointpeft.cli.main import main
from pointpeft.data.sets.s3dis import load
from pointpeft.drawing.card import POINT_CLASS, TRUE_POINT_CLASS
from pointpeft.runs.config import EvaluateConfig, FinetuneConfig
from pointpeft.runs.evaluate import evaluate
from pointpeft.runs.finetune import finetune
from pointpeft.tasks.adapted import Adapted
from pointpeft.tasks.inference import Voting
from pointpeft.tasks.scenes.batches import COLUMN_SIDE, Scenes, windows
from pointpeft.tasks.scenes.task import SceneMetrics, SemanticSegmentation, classify_scene, confusion
from tests.clouds import TINY_MODEL
from tests.data.sets.test_s3dis import write_rooms


@pytest.fixture
def config(tmp_path):
    return FinetuneConfig(
        data=str(write_rooms(tmp_path / "rooms")),
        task="semantic_segmentation",
        set=TINY_MODEL,
        checkpoint="none",
        device="cpu",
        quiet=True,
        output=tmp_path / "run",
        epochs=2,
        warmup_epochs=1,
        num_points=128,
        batch_size=8,
        columns_per_epoch=16,
        val_fraction=0.4,
    )


def test_training_columns_are_of_the_published_size_and_keep_their_labels(config):
    scenes = Scenes(load(config.data, "train"), 256)
    assert scenes.num_columns == -(-3 * 2000 // 256)
    (points, targets), *others = scenes.batches(8, torch.Generator().manual_seed(0))
    assert sum(len(targets) for _, targets in [(points, targets), *others]) == scenes.num_columns
    assert points.shape == (len(targets), 256, 3)
    assert points[..., :2].abs().max() <= COLUMN_SIDE / 2
    # As the rooms were made: label 1 is the floor, 0 the ceiling.
    assert torch.equal(targets.labels == 1, points[..., 2] < 0.1)
    assert torch.equal(targets.labels == 0, points[..., 2] > 1.9)


def test_class_weights_are_the_published_ones(config):
    scenes = Scenes(load(config.data, "train"), 64)
    counts = torch.cat(scenes.point_labels).bincount(minlength=13)
    weights = scenes.class_weights()
    present = counts > 0
    torch.testing.assert_close(weights[present], (counts.max() / counts[present]) ** (1 / 3))
    assert (weights[~present] == 1).all()


@torch.no_grad()
def test_a_method_of_two_passes_weighs_the_classes_in_both(config):
    scenes = Scenes(load(config.data, "train"), 128)
    points, targets = next(iter(scenes.batches(4, torch.Generator().manual_seed(0))))
    options = {name: int(value) for name, value in (pair.split("=") for pair in TINY_MODEL)}
    task = SemanticSegmentation()
    model = create_model("point_mae_tiny", "dyt", **task.outputs(scenes), **options).eval()
    losses = task.losses(model, model, points, targets)
    for name, logits in (("loss", model(points)), ("full", model.method.full_pass(model, points))):
        weighted = cross_entropy(logits.flatten(0, 1), targets.labels.flatten(), scenes.class_weights())
        torch.testing.assert_close(losses[name], weighted)
        assert not torch.allclose(weighted, cross_entropy(logits.flatten(0, 1), targets.labels.flatten()))


@pytest.mark.parametrize(("n", "size"), [(2000, (2.3, 1.1)), (300, (0.4, 3.0)), (50, (5.0, 5.0)), (1, (1.0, 1.0))])
def test_windows_cover_every_point_with_its_own_coordinates(n, size):
    generator = torch.Generator().manual_seed(0)
    xyz = torch.rand(n, 3, generator=generator) * torch.tensor([*size, 2.5])
    seen = torch.zeros(n, dtype=torch.int64)
    for points, places, own in windows(xyz, 64, generator):
        assert points.shape == (64, 3)
        assert torch.equal(points[:, 2], xyz[places, 2])
        moved = points[:, :2] - xyz[places, :2]
        torch.testing.assert_close(moved, moved[:1].expand(64, 2), rtol=0, atol=1e-5)
        assert 1 <= own <= 64
        assert len(places[:own].unique()) == own
        seen[places[:own]] += 1
    assert (seen >= 1).all()
    if size == (2.3, 1.1):
        assert seen.double().mean() > 2


class ByHeight(nn.Module):
    """The class by the height of a point: what the rooms were made by."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, points):
        label = torch.where(points[..., 2] < 0.1, 1, torch.where(points[..., 2] > 1.9, 0, 12))
        return self.one * nn.functional.one_hot(label, 13).float() * 9


def test_a_room_is_shown_without_its_ceiling_in_the_classes_of_its_points(config):
    dataset = load(config.data, "test")
    xyz, labels = dataset[0]
    adapted = Adapted(ByHeight().eval(), dataset.classes, 64, False)
    far = xyz + torch.tensor([50.0, 40.0, 7.0])
    rooms = SimpleNamespace(points=[far], names=["room"], point_labels=[labels])
    card = SemanticSegmentation().test_card(adapted, rooms, 0, None)
    assert (card.confidence, card.predicted) == (1.0, "scene of 2000 points")
    said, names = card.labels[POINT_CLASS]
    assert torch.equal(said, card.labels[TRUE_POINT_CLASS][0])
    assert set(said.tolist()) == {1, 12}
    assert names[0] == "ceiling"
    assert len(card.xyz) == int((labels != 0).sum())
    assert torch.equal(said == 1, card.xyz[:, 2] < 7.1)


@pytest.mark.parametrize("vote", [1, 3])
def test_the_votes_of_windows_return_to_their_points(config, vote):
    xyz, labels = load(config.data, "test")[0]
    said, loss = classify_scene(ByHeight().eval(), xyz, 64, 5, Voting(vote, 0, "none"), labels)
    assert torch.equal(said, labels)
    assert loss == pytest.approx(math.log(1 + 12 * math.exp(-9)), rel=1e-3)


def test_metrics_by_hand():
    true, said = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 1, 1, 1, 1])
    metrics = SceneMetrics(confusion(true, said, 4), 0.5, 1)
    assert metrics.iou.tolist()[:3] == pytest.approx([2 / 3, 2 / 4, 0])
    numbers = metrics.logged()
    assert numbers["mIoU"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)  # class 3 does not occur
    assert numbers["mean class accuracy"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert numbers["point accuracy"] == pytest.approx(4 / 6)
    assert metrics.per_class(("a", "b", "c", "d"))["d"] == {"miou": None, "points": 0}


def test_a_run_learns_rooms_and_can_be_evaluated(config, tmp_path, capsys):
    result = finetune(replace(config, epochs=12, lr=3e-3, method="full", set=TINY_MODEL[:-1]))
    facts = result
    assert facts.test["point_accuracy"] > 0.6  # the largest class has 0.4
    assert facts.clouds == {"train": 2, "val": 1, "test": 1}
    assert facts.notes == ("test rooms: area 5",)
    assert {"scenes.png", "curves.png", "result.json", "adapter"} <= {p.name for p in result.folder.iterdir()}
    again = evaluate(EvaluateConfig(result.folder, device="cpu", quiet=True))
    for name in ("miou", "point_accuracy"):
        assert again.test[name] == facts.test[name]
    voted = evaluate(EvaluateConfig(result.folder, device="cpu", quiet=True, votes=2))
    assert (voted.votes, voted.test_augment) == (2, "none")
    with pytest.raises(ValueError, match="densities must be empty for scenes"):
        evaluate(EvaluateConfig(result.folder, device="cpu", quiet=True, densities=(64,)))

    cloud = np.load(tmp_path / "rooms" / "Area_5_office_1.npy")
    np.save(tmp_path / "new.npy", cloud[:, :3])
    output = tmp_path / "out"
    assert main(["predict", str(result.folder), str(tmp_path / "new.npy"), f"--output={output}", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    labels = np.load(found["labels"])
    assert (labels == cloud[:, 6]).mean() == pytest.approx(facts.test["point_accuracy"], abs=0.05)

    for given in ([], [str(tmp_path / "new.npy")]):
        assert main(["show", str(result.folder), *given, f"--output={output}"]) == 0
        page, picture = map(Path, capsys.readouterr().out.split())
        assert picture.read_bytes()[:4] == b"\x89PNG"
        (shown,) = json.loads(re.search(r"const clouds = (\[.*?\]);\n", page.read_text()).group(1))
        assert set(shown["layers"]) == {POINT_CLASS} | (set() if given else {TRUE_POINT_CLASS})
        if not given:
            assert shown["confidence"] == pytest.approx(facts.test["point_accuracy"], abs=0.05)
    assert main(["show", str(result.folder), "--category=office"]) != 0
    assert "category must be left out" in capsys.readouterr().err


def test_a_stopped_run_repeats_itself(config, tmp_path):
    first, second = (finetune(replace(config, output=tmp_path / name)) for name in ("a", "b"))
    assert first.test == second.test


def test_options_of_rooms_are_refused_elsewhere(config):
    with pytest.raises(ValueError, match="columns_per_epoch is no option of classification"):
        finetune(FinetuneConfig(columns_per_epoch=4, device="cpu"))
    with pytest.raises(ValueError, match="columns_per_epoch must be at least 1, got 0"):
        finetune(replace(config, columns_per_epoch=0))
