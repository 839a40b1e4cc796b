"""Semantic segmentation of scenes: every point has one of the classes; columns are what the model sees."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pointpeft.data.part_loading import load_scenes
from pointpeft.data.segments import SceneDataset
from pointpeft.data.transforms import named
from pointpeft.drawing.card import POINT_CLASS, TRUE_POINT_CLASS, Card
from pointpeft.escapes import figure_text
from pointpeft.files import write_atomically
from pointpeft.model import PointModel
from pointpeft.tasks.adapted import Adapted
from pointpeft.tasks.base import Observe, Task, heading, register_task
from pointpeft.tasks.classification.report import draw_curves
from pointpeft.tasks.inference import Voting
from pointpeft.tasks.parts.report import draw_cloud
from pointpeft.tasks.scenes.batches import Scenes, windows
from pointpeft.training.divergence import require_finite_logits
from pointpeft.training.processes import deal
from pointpeft.training.seeds import derive_seed

DRAWN = 8000  # points of a scene in a picture or on a page; all are classified
CEILING = "ceiling"  # left out on pages, because it hides the scene
_POINT = 20  # bytes: three coordinates and a class
SHOWN = 3  # scenes in it, the worst first


@dataclass(frozen=True)
class SceneMetrics:
    """How well points were classified.

    Attributes:
        confusion: Points of true class i predicted as class j. [P, P]
        loss: Mean cross-entropy of all windows' points.
        scenes: How many.
    """

    confusion: Tensor
    loss: float
    scenes: int

    NUMBERS = ("miou", "mean_class_accuracy", "point_accuracy", "loss")

    @property
    def iou(self) -> Tensor:
        """Intersection over union of each class; nan for one that neither occurs nor is predicted. [P]"""
        right = self.confusion.diagonal().double()
        return right / (self.confusion.sum(0) + self.confusion.sum(1) - right)

    @property
    def score(self) -> list[float]:
        """Numbers that selection maximises, in order of precedence."""
        return [self._numbers()["miou"], -self.loss]

    def _numbers(self) -> dict[str, float]:
        """Means over the classes that occur."""
        right, true = self.confusion.diagonal().double(), self.confusion.sum(1)
        numbers = (
            float(self.iou.nanmean()),
            float((right / true)[true > 0].mean()),
            float(right.sum() / true.sum()),
            self.loss,
        )
        return dict(zip(self.NUMBERS, numbers, strict=True))

    def logged(self) -> dict[str, float]:
        """Numbers for the log of every epoch."""
        return {heading(name): value for name, value in self._numbers().items()}

    def summary(self) -> dict[str, float | int]:
        """The single numbers, rounded as results are printed."""
        return {name: round(value, 4) for name, value in self._numbers().items()} | {"clouds": self.scenes}

    def per_class(self, classes: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        """IoU and number of points by class; None where a class does not occur."""
        iou, counts = self.iou.tolist(), self.confusion.sum(1).tolist()
        return {
            name: {"miou": None if value != value else round(value, 4), "points": count}
            for name, value, count in zip(classes, iou, counts, strict=True)
        }


def confusion(true: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Counts of (true class, predicted class). [n], [n] -> [P, P]"""
    return (true * classes + predicted).bincount(minlength=classes * classes).view(classes, classes)


@torch.no_grad()
def classify_scene(
    model: nn.Module, xyz: Tensor, num_points: int, batch_size: int, voting: Voting, labels: Tensor | None = None
) -> tuple[Tensor, float]:
    """Classes of all points of a scene: each window votes for its points, the class with most votes wins.

    Args:
        model: Of semantic segmentation, in evaluation mode.
        xyz: The scene. [n, 3]
        num_points: N, points the model sees at once.
        batch_size: Windows per step.
        voting: Passes of the sliding window; each deals points anew, all but the first may be augmented.
        labels: True classes, for the loss. [n]

    Returns:
        Class of each point, int64 [n]; and the mean loss, 0 without labels.
    """
    device = next(model.parameters()).device
    votes: Tensor | None = None
    loss, count = 0.0, 0
    for number in range(voting.votes):
        generator = torch.Generator().manual_seed(derive_seed(voting.seed, "window", number))
        augment = named(voting.augment if number else "none", "z")
        for points, places, rows in _batched(windows(xyz, num_points, generator), batch_size):
            logits = require_finite_logits(model(augment(points, generator).to(device)).float().cpu(), "windows")
            counted = torch.arange(num_points) < rows[:, None]
            idx, chosen = places[counted], logits[counted]
            if votes is None:
                votes = torch.zeros(len(xyz), logits.shape[-1], dtype=torch.int32)
            votes.index_put_((idx, chosen.argmax(-1)), torch.ones((), dtype=torch.int32), accumulate=True)
            if labels is not None:
                loss += float(cross_entropy(chosen, labels[idx], reduction="sum"))
                count += len(idx)
    assert votes is not None
    return votes.argmax(-1), loss / max(1, count)


def _batched(columns: Iterator[tuple[Tensor, Tensor, int]], batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    waiting: list[tuple[Tensor, Tensor, int]] = []

    def stacked() -> tuple[Tensor, Tensor, Tensor]:
        points, places, rows = zip(*waiting, strict=True)
        return torch.stack(points), torch.stack(places), torch.tensor(rows)

    for window in columns:
        waiting.append(window)
        if len(waiting) == batch_size:
            yield stacked()
            waiting.clear()
    if waiting:
        yield stacked()


@register_task
class SemanticSegmentation(Task[Scenes, SceneMetrics]):
    """One class per point of a scene; published for S3DIS.

    Args:
        columns_per_epoch: Columns of a training epoch; None for enough to hold all points.
    """

    name = "semantic_segmentation"
    columns = {"miou": "mIoU", "mean_class_accuracy": "class accuracy"}
    numbers = SceneMetrics.NUMBERS
    test_augment = "none"
    page = "scenes.png"
    double_step = True
    can_read_lazily = False
    served = False
    from_corner = True

    def __init__(self, columns_per_epoch: int | None = None) -> None:
        self.columns_per_epoch = columns_per_epoch

    def load(self, source: str, split: str, up_axis: str | None, lazy: bool = False, **options: Any) -> SceneDataset:
        """The scenes of one split, never lazily."""
        return load_scenes(source, split, up_axis=up_axis, **options)

    def gather(self, dataset: SceneDataset, num_points: int, on_disk: bool = False, workers: int = 0) -> Scenes:
        """Its scenes, always in memory."""
        return Scenes(dataset, num_points, self.columns_per_epoch)

    def bytes_in_memory(self, dataset: SceneDataset, num_points: int) -> int:
        """Memory of one column per scene: an estimate, since scenes are not read to be counted."""
        return _POINT * len(dataset) * num_points

    def outputs(self, clouds: Scenes) -> dict[str, Any]:
        """Arguments of `create_model` that follow from the labels."""
        return {"num_classes": len(clouds.classes), "task": self.name}

    def metadata(self, clouds: Scenes) -> dict[str, Any]:
        """How a scene is seen."""
        return {"protocol": "test: sliding windows, a vote per window; selection: random columns"}

    def classes_of(self, points: Tensor, targets: Any) -> Tensor:
        """Columns of scenes are all of one class. int64 [B]"""
        return torch.zeros(len(points), dtype=torch.int64)

    def losses(self, wrapped: nn.Module, model: PointModel, points: Tensor, targets: Any) -> dict[str, Tensor]:
        """Cross-entropy weighted by class, and the method's own."""
        logits = wrapped(points)
        of_method = model.method.losses(model, points, targets.labels, logits, targets.weights)
        return {"loss": cross_entropy(logits.flatten(0, 1), targets.labels.flatten(), targets.weights), **of_method}

    @torch.no_grad()
    def judge(self, model: PointModel, clouds: Scenes, batch_size: int, voting: Voting) -> SceneMetrics:
        """Metrics for selection, on random columns: the sliding window would take longer than an epoch."""
        model.eval()
        device, classes = next(model.parameters()).device, len(clouds.classes)
        total = clouds.num_columns
        columns = list(clouds.columns(total, derive_seed(voting.seed, "judge")))

        def answer(batch: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, float]:
            points, labels = (torch.stack(column) for column in zip(*batch, strict=True))
            logits = model(points.to(device)).float().cpu().flatten(0, 1)
            mean = float(cross_entropy(logits, labels.flatten()))
            return confusion(labels.flatten(), logits.argmax(-1), classes), mean * len(batch)

        answers = deal([columns[i : i + batch_size] for i in range(0, total, batch_size)], answer)
        counts: Any = sum(count for count, _ in answers)
        loss = sum(loss for _, loss in answers)
        return SceneMetrics(counts, loss / total, len(clouds))

    def test(
        self, model: PointModel, clouds: Scenes, batch_size: int, voting: Voting, title: str | None = None
    ) -> tuple[SceneMetrics, list[Tensor]]:
        """Metrics over all points of all scenes, and their predicted classes, scene by scene."""
        model.eval()
        classes = len(clouds.classes)
        counts, loss, answers = torch.zeros(classes, classes, dtype=torch.int64), 0.0, []

        def answer(scene: tuple[Tensor, Tensor]) -> tuple[Tensor, float]:
            return classify_scene(model, scene[0], clouds.num_points, batch_size, voting, scene[1])

        scenes = list(zip(clouds.points, clouds.point_labels, strict=True))
        for (xyz, labels), (predicted, mean) in zip(scenes, deal(scenes, answer, title, "scene"), strict=True):
            counts += confusion(labels, predicted, classes)
            loss += mean * len(xyz)
            answers.append(predicted)
        return SceneMetrics(counts, loss / sum(clouds.sizes), len(clouds)), answers

    def report(
        self,
        folder: Path,
        clouds: Scenes,
        answers: Any,
        metrics: SceneMetrics,
        history: Sequence[dict[str, float]] = (),
        selected: int | None = None,
        beside: Sequence[str] = (),
    ) -> None:
        """Writes `scenes.png` (the scenes with most mistakes, true and predicted) and `curves.png`."""
        from matplotlib.figure import Figure  # no pyplot: it would choose a window system

        share = [float((s == t).float().mean()) for s, t in zip(answers, clouds.point_labels, strict=True)]
        worst = sorted(range(len(share)), key=share.__getitem__)[:SHOWN]
        figure = Figure(figsize=(10, 4 * len(worst)), layout="constrained")
        handles: Any = ()
        for row, i in enumerate(worst):
            pick = torch.randperm(len(clouds.points[i]), generator=torch.Generator().manual_seed(0))[:DRAWN]
            pick = pick[clouds.point_labels[i][pick] != 0]  # without the ceiling, which hides the scene
            sides = ((f"{clouds.names[i]} {share[i]:.0%}: true", clouds.point_labels[i]), ("predicted", answers[i]))
            for column, (title, labels) in enumerate(sides):
                axes = figure.add_subplot(len(worst), 2, 2 * row + column + 1, projection="3d")
                every = range(len(clouds.classes))
                handles = draw_cloud(axes, clouds.points[i][pick], labels[pick], every, clouds.up_axis)
                axes.set_title(figure_text(title), fontsize=9)
        figure.legend(
            handles, list(map(figure_text, clouds.classes)), loc="outside right center", fontsize=8, markerscale=4
        )
        figure.suptitle(f"mIoU {metrics.logged()['mIoU']:.1%}; {len(worst)} of {len(clouds)} scenes, worst first")
        write_atomically(folder / "scenes.png", lambda path: figure.savefig(path, dpi=110, format="png"))
        if history:
            curves = Figure(figsize=(8, 3.2), layout="constrained")
            draw_curves(curves, history, selected, "mIoU")
            write_atomically(folder / "curves.png", lambda path: curves.savefig(path, dpi=110, format="png"))

    def adopt(self, clouds: Scenes, metadata: dict[str, Any], data: str) -> None:
        """Checks that other scenes have the adapter's classes.

        Raises:
            ValueError: They do not.
        """
        if tuple(metadata["classes"]) != tuple(clouds.classes):
            raise ValueError(f"{data} has other classes than the adapter: {', '.join(clouds.classes)}")

    def label_points(self, adapted: Adapted, points: Tensor, category: int = 0, seed: int = 0) -> Tensor:
        """Class of every point of a scene, by one pass of the sliding window.

        Args:
            adapted: A model of semantic segmentation.
            points: In metres, z up, wherever the scene lies. [n, 3]
            category: Not used.
            seed: Of the windows.
        """
        return classify_scene(adapted.model, points - points.amin(0), adapted.num_points, 16, Voting(1, seed))[0]

    def examples(self, clouds: Scenes, count: int) -> list[int]:
        """The first scenes."""
        return list(range(min(count, len(clouds))))

    def card(self, adapted: Adapted, points: Tensor, name: str, observe: Observe, category: int = 0) -> Card:
        """A scene, thinned and without what is taken for its ceiling."""
        return self._card(adapted, points, name, None)

    def test_card(self, adapted: Adapted, clouds: Scenes, index: int, observe: Observe) -> Card:
        """One of the test scenes, with its true classes and without its ceiling."""
        return self._card(adapted, clouds.points[index], clouds.names[index], clouds.point_labels[index])

    def _card(self, adapted: Adapted, xyz: Tensor, name: str, true: Tensor | None) -> Card:
        labels = self.label_points(adapted, xyz)
        inner = torch.ones(len(xyz), dtype=torch.bool)
        if CEILING in adapted.classes:
            inner = (labels if true is None else true) != adapted.classes.index(CEILING)
        shown = inner.nonzero().flatten() if inner.any() else torch.arange(len(xyz))
        shown = shown[torch.randperm(len(shown), generator=torch.Generator().manual_seed(0))[:DRAWN]]
        layers: dict[str, tuple[Tensor, Sequence[str]]] = {POINT_CLASS: (labels[shown], adapted.classes)}
        right = None
        if true is not None:
            layers[TRUE_POINT_CLASS] = (true[shown], adapted.classes)
            right = float((labels == true).float().mean())
        return Card(name, xyz[shown], f"scene of {len(xyz)} points", right, None, layers, {})
