"""What depends on the question asked: of a whole cloud, or of every point."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pointpeft.data import load_dataset
from pointpeft.model import PointModel
from pointpeft.tasks import storage
from pointpeft.tasks.batches import Clouds
from pointpeft.tasks.classification.metrics import measure
from pointpeft.tasks.classification.report import write_report
from pointpeft.tasks.inference import Voting, voted_logits

_MODULES = {
    "part_segmentation": ("pointpeft.tasks.parts.task", "PartSegmentation"),
    "semantic_segmentation": ("pointpeft.tasks.scenes.task", "SemanticSegmentation"),
}


class Classification:
    """One label per cloud. Other tasks derive from it and replace what differs."""

    name: ClassVar[str] = "classification"
    # Names of the numbers of a result: the one that is selected by, then others; and how a result prints them.
    numbers: ClassVar[tuple[str, ...]] = ("overall accuracy", "mean class accuracy", "loss")
    # Whether a linear probe on cached features stands beside a result.
    probed: ClassVar[bool] = True
    # The published recipe's augmentation.
    augment: ClassVar[str] = "scale_translate"
    # The augmentation of a vote's passes beyond the first.
    test_augment: ClassVar[str] = "scale_translate"
    # What a person is to look at first.
    page: ClassVar[str] = "report.html"
    # Whether the published training code steps twice per batch.
    double_step: ClassVar[bool] = False
    # Whether clouds need not be in memory.
    can_stay_on_disk: ClassVar[bool] = True

    def load(
        self, source: str, split: str, up_axis: str | None, lazy: bool = False, drop_non_finite: bool = False
    ) -> Any:
        """One part of a data set; `lazy` leaves its clouds on disk where the task `can_stay_on_disk`."""
        return load_dataset(source, split, up_axis=up_axis, lazy=lazy, drop_non_finite=drop_non_finite)

    def gather(self, dataset: Any, num_points: int, on_disk: bool = False, workers: int = 0) -> Any:
        """Its clouds, see `Clouds`."""
        return Clouds(dataset, num_points, on_disk=on_disk, workers=workers)

    def can_be_left(self, source: str) -> bool:
        """Whether the form of a data set allows its clouds to be read one by one."""
        return storage.can_be_left(source)

    def bytes_in_memory(self, dataset: Any, num_points: int) -> int:
        """How much the clouds of a data set take, gathered in memory."""
        return storage.bytes_in_memory(dataset, num_points)

    def outputs(self, clouds: Any) -> dict[str, Any]:
        """What `create_model` is to be told."""
        return {"num_classes": len(clouds.classes)}

    def metadata(self, clouds: Any) -> dict[str, Any]:
        """Facts of the labels that evaluation and prediction need beside the classes."""
        return {}

    def classes_of(self, points: Tensor, targets: Any) -> Tensor:
        """The class of each cloud of a batch. int64 [B]"""
        return targets

    def losses(self, wrapped: nn.Module, model: PointModel, points: Tensor, targets: Any) -> dict[str, Tensor]:
        """The task's loss and the method's own."""
        logits = wrapped(points)
        own = model.method.losses(model, points, targets, logits)
        return {"loss": nn.functional.cross_entropy(logits, targets), **own}

    def test(self, model: PointModel, clouds: Any, batch_size: int, voting: Voting, title: str | None = None) -> Any:
        """Metrics, and the answers that `report` draws."""
        logits = voted_logits(model, clouds, batch_size, voting, title)
        return measure(logits, clouds.labels), logits

    def judge(self, model: PointModel, clouds: Any, batch_size: int, voting: Voting) -> Any:
        """Metrics for the selection of an epoch."""
        return self.test(model, clouds, batch_size, voting)[0]

    def report(
        self,
        folder: Path,
        clouds: Any,
        answers: Any,
        metrics: Any,
        history: Sequence[dict[str, float]] = (),
        selected: int | None = None,
    ) -> None:
        """Writes plots and pages into a folder."""
        write_report(folder, clouds, answers, metrics, history, selected)

    def adopt(self, clouds: Any, metadata: dict[str, Any], data: str) -> None:
        """Renumbers the labels of other data as an adapter's classes are.

        Raises:
            ValueError: A class that the adapter does not know.
        """
        known = tuple(metadata["classes"])
        unknown = sorted(set(clouds.classes) - set(known))
        if unknown:
            raise ValueError(
                f"{data} has classes that the adapter does not know: {', '.join(unknown)}; it knows {', '.join(known)}"
            )
        # The data set may name fewer classes, or in another order.
        renumber = torch.tensor([known.index(name) for name in clouds.classes])
        clouds.labels, clouds.classes = renumber[clouds.labels], known


def create_task(name: str, **options: Any) -> Any:
    """A task by its name.

    Args:
        name: One of `pointpeft.model.TASKS`.
        options: Of semantic segmentation; None where not given.

    Raises:
        ValueError: An unknown name, or an option of another task.
    """
    from importlib import import_module

    options = {key: value for key, value in options.items() if value is not None}
    if options and name != "semantic_segmentation":
        raise ValueError(f"{', '.join(options)} is an option of semantic_segmentation, not of {name}")
    if name == Classification.name:
        return Classification()
    if name not in _MODULES:
        raise ValueError(f"task must be one of {', '.join((Classification.name, *_MODULES))}, got {name!r}")
    module, kind = _MODULES[name]
    return getattr(import_module(module), kind)(**options)
