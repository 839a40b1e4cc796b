"""Classification: every cloud has one of the classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pointpeft.data import PointCloudDataset, load_dataset
from pointpeft.drawing.card import CLASS, Card
from pointpeft.model import PointModel
from pointpeft.tasks import storage
from pointpeft.tasks.adapted import Adapted
from pointpeft.tasks.base import Observe, Task, one_of_each, register_task
from pointpeft.tasks.batches import Clouds, fit
from pointpeft.tasks.classification.metrics import Metrics, measure
from pointpeft.tasks.classification.report import write_report
from pointpeft.tasks.inference import Voting, voted_logits


@register_task
class Classification(Task[Clouds, Metrics]):
    """One label per cloud."""

    name = "classification"
    columns = {"overall_accuracy": "test accuracy", "mean_class_accuracy": "class accuracy"}
    numbers = ("overall_accuracy", "mean_class_accuracy", "loss")
    class_number = "accuracy"
    hub_tag = "point-cloud-classification"
    probed = True
    augment = "scale_translate"
    test_augment = "scale_translate"
    can_drop_non_finite = True
    streams = True
    embedded = True
    question = "What is this cloud?"

    def load(
        self, source: str, split: str, up_axis: str | None, lazy: bool = False, **options: Any
    ) -> PointCloudDataset:
        """One split of a data set; `options` are those of `load_dataset`."""
        return load_dataset(source, split, up_axis=up_axis, lazy=lazy, **options)

    def gather(self, dataset: PointCloudDataset, num_points: int, on_disk: bool = False, workers: int = 0) -> Clouds:
        """Its clouds, see `Clouds`."""
        return Clouds(dataset, num_points, on_disk=on_disk, workers=workers)

    def can_read_source_lazily(self, source: str) -> bool:
        """Not the embedded set, nor what is unpickled as a whole."""
        return storage.can_read_source_lazily(source)

    def bytes_in_memory(self, dataset: PointCloudDataset, num_points: int) -> int:
        """How much the clouds of a data set take, gathered in memory."""
        return storage.bytes_in_memory(dataset, num_points)

    def outputs(self, clouds: Clouds) -> dict[str, Any]:
        """Arguments of `create_model`: the number of classes, and the axis that points up."""
        return {"num_classes": len(clouds.classes), "up_axis": clouds.up_axis}

    def classes_of(self, points: Tensor, targets: Any) -> Tensor:
        """The targets themselves. int64 [B]"""
        return targets

    def losses(self, wrapped: nn.Module, model: PointModel, points: Tensor, targets: Any) -> dict[str, Tensor]:
        """Cross-entropy, and the method's own losses."""
        logits = wrapped(points)
        of_method = model.method.losses(model, points, targets, logits)
        return {"loss": nn.functional.cross_entropy(logits, targets), **of_method}

    def test(
        self, model: PointModel, clouds: Clouds, batch_size: int, voting: Voting, title: str | None = None
    ) -> tuple[Metrics, Tensor]:
        """Metrics, and the logits of each cloud."""
        logits = voted_logits(model, clouds, batch_size, voting, title)
        return measure(logits, clouds.labels), logits

    def report(
        self,
        folder: Path,
        clouds: Clouds,
        answers: Any,
        metrics: Metrics,
        history: Sequence[dict[str, float]] = (),
        selected: int | None = None,
        beside: Sequence[str] = (),
    ) -> None:
        """Writes plots and pages into a folder."""
        write_report(folder, clouds, answers, metrics, history, selected, beside)

    def adopt(self, clouds: Clouds, metadata: dict[str, Any], data: str) -> None:
        """Renumbers the labels of other data, which may name fewer classes, or in another order.

        Raises:
            ValueError: A class that the adapter does not know.
        """
        known = tuple(metadata["classes"])
        unknown = sorted(set(clouds.classes) - set(known))
        if unknown:
            raise ValueError(
                f"{data} has classes that the adapter does not know: {', '.join(unknown)}; it knows {', '.join(known)}"
            )
        renumber = torch.tensor([known.index(name) for name in clouds.classes])
        clouds.labels, clouds.classes = renumber[clouds.labels], known

    def category_index(self, adapted: Adapted, category: str | None) -> int:
        """Always 0: a classifier takes no category.

        Raises:
            ValueError: A category was named.
        """
        if category is not None:
            raise ValueError(f"category must be left out for a classifier, got {category!r}")
        return 0

    def card(self, adapted: Adapted, points: Tensor, name: str, observe: Observe, category: int = 0) -> Card:
        """A cloud of any number of points, in the colour of its class."""
        return self._card(adapted, fit(points, adapted.num_points), name, observe, None)

    def examples(self, clouds: Clouds, count: int) -> list[int]:
        """One cloud of each class before a second of any."""
        return one_of_each(clouds.labels, count)

    def test_card(self, adapted: Adapted, clouds: Clouds, index: int, observe: Observe) -> Card:
        """One of the gathered test clouds, with its true class."""
        true = clouds.classes[int(clouds.labels[index])]
        return self._card(adapted, clouds.fixed()[index], clouds.names[index], observe, true)

    def _card(self, adapted: Adapted, xyz: Tensor, name: str, observe: Observe, true: str | None) -> Card:
        observation = observe(adapted.model, xyz)
        probability, predicted = observation.output.softmax(0).max(0)
        labels: dict[str, tuple[Tensor, Sequence[str]]] = {CLASS: (predicted.expand(len(xyz)), adapted.classes)}
        predicted_name = adapted.classes[int(predicted)]
        return Card(name, xyz, predicted_name, float(probability), true, labels, observation.layers, observation.memory)
