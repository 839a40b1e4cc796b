"""Part segmentation: every point of a cloud of known category belongs to one of that category's parts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pointpeft.data.part_loading import load_segments
from pointpeft.data.segments import SegmentDataset
from pointpeft.drawing.card import PART, TRUE_PART, Card
from pointpeft.model import PointModel
from pointpeft.tasks.adapted import Adapted
from pointpeft.tasks.base import Observe, Task, one_of_each, register_task
from pointpeft.tasks.batches import fit
from pointpeft.tasks.inference import Voting
from pointpeft.tasks.parts.batches import PartClouds
from pointpeft.tasks.parts.metrics import PartMetrics, measure_parts, predicted_parts
from pointpeft.tasks.parts.report import write_part_report
from pointpeft.training.divergence import require_finite_logits
from pointpeft.training.processes import deal

_POINT = 16  # bytes: three coordinates and a part


@register_task
class PartSegmentation(Task[PartClouds, PartMetrics]):
    """One part per point; a cloud's category is given, as papers on ShapeNetPart have it."""

    name = "part_segmentation"
    columns = {"instance_miou": "instance mIoU", "class_miou": "class mIoU"}
    numbers = PartMetrics.NUMBERS
    page = "parts.png"
    double_step = True
    question = "What are its parts?"

    def load(self, source: str, split: str, up_axis: str | None, lazy: bool = False, **options: Any) -> SegmentDataset:
        """One split of a data set; `options` are those of `load_segments`."""
        return load_segments(source, split, up_axis=up_axis, lazy=lazy, **options)

    def gather(self, dataset: SegmentDataset, num_points: int, on_disk: bool = False, workers: int = 0) -> PartClouds:
        """Its clouds, see `PartClouds`."""
        return PartClouds(dataset, num_points, on_disk=on_disk, workers=workers)

    def bytes_in_memory(self, dataset: SegmentDataset, num_points: int) -> int:
        """Memory of all points with their parts; an estimate where their number is unknown before they are read."""
        return _POINT * (len(dataset) * num_points if dataset.sizes is None else sum(dataset.sizes))

    def outputs(self, clouds: PartClouds) -> dict[str, Any]:
        """Arguments of `create_model`; a single category is no input."""
        num_categories = len(clouds.classes)
        return {
            "num_classes": len(clouds.parts),
            "task": self.name,
            "num_categories": num_categories if num_categories > 1 else 0,
        }

    def metadata(self, clouds: PartClouds) -> dict[str, Any]:
        """Names of the parts, and those of each category."""
        return {"parts": list(clouds.parts), "parts_of": [list(parts) for parts in clouds.parts_of]}

    def classes_of(self, points: Tensor, targets: Any) -> Tensor:
        """The category of each cloud of a batch. int64 [B]"""
        return targets.category

    def losses(self, wrapped: nn.Module, model: PointModel, points: Tensor, targets: Any) -> dict[str, Tensor]:
        """Cross-entropy over all points and all parts, and the method's own."""
        inputs = {"category": targets.category} if model.num_categories else {}
        logits = wrapped(points, **inputs)
        of_method = model.method.losses(model, points, targets.parts, logits, **inputs)
        return {"loss": cross_entropy(logits.flatten(0, 1), targets.parts.flatten()), **of_method}

    @torch.no_grad()
    def test(
        self, model: PointModel, clouds: PartClouds, batch_size: int, voting: Voting, title: str | None = None
    ) -> tuple[PartMetrics, Tensor]:
        """Metrics, and the part predicted for each of `clouds.fixed()`."""
        model.eval()
        device = next(model.parameters()).device
        counted, allowed = clouds.counted(), clouds.allowed

        def answer(chunk: Tensor) -> tuple[Tensor, Tensor, float]:
            category, indices = clouds.labels[chunk], chunk.tolist()
            inputs = {"category": category.to(device)} if model.num_categories else {}
            whole = [clouds.labelled[i] for i in indices]
            fixed = torch.stack([clouds.fixed_rows(i, rows) for i, rows in zip(indices, whole, strict=True)])
            xyz, parts = fixed[..., :3].contiguous(), fixed[..., 3].long()
            logits = torch.zeros(())
            for cloud, query in voting.dense_views(indices, [rows[:, :3] for rows in whole], xyz, clouds.up_axis):
                logits = logits + model(cloud.to(device), query=query.to(device), **inputs).float().cpu()
            logits = require_finite_logits(logits / voting.votes)
            within = torch.arange(parts.shape[1]) < counted[chunk][:, None]
            loss = float(cross_entropy(logits[within], parts[within], reduction="sum"))
            return predicted_parts(logits, category, allowed), parts, loss

        batches = deal(torch.arange(len(clouds)).split(batch_size), answer, title)
        predicted, true, losses = zip(*batches, strict=True)
        answers, parts = torch.cat(predicted), torch.cat(true)
        loss = sum(losses) / int(counted.sum())
        return measure_parts(answers, parts, counted, clouds.labels, clouds.parts_of, loss), answers

    def report(
        self,
        folder: Path,
        clouds: PartClouds,
        answers: Any,
        metrics: PartMetrics,
        history: Sequence[dict[str, float]] = (),
        selected: int | None = None,
        beside: Sequence[str] = (),
    ) -> None:
        """Writes `parts.png` (true and predicted parts side by side) and `curves.png`."""
        write_part_report(folder, clouds, answers, metrics, history, selected)

    def adopt(self, clouds: PartClouds, metadata: dict[str, Any], data: str) -> None:
        """Checks that other data have the adapter's categories and parts.

        Raises:
            ValueError: They do not.
        """
        for name, names in (("classes", clouds.classes), ("parts", clouds.parts)):
            if tuple(metadata[name]) != tuple(names):
                strange = sorted(set(names) ^ set(metadata[name]))
                raise ValueError(f"{data} has other {name} than the adapter: {', '.join(strange[:8]) or 'their order'}")
        clouds.parts_of = tuple(tuple(parts) for parts in metadata["parts_of"])

    def label_names(self, adapted: Adapted) -> tuple[str, ...]:
        """Names of all parts."""
        return tuple(adapted.metadata["parts"])

    def categories(self, adapted: Adapted) -> tuple[str, ...]:
        """The categories, where the model knows several."""
        return adapted.classes if len(adapted.classes) > 1 else ()

    def category_index(self, adapted: Adapted, category: str | None) -> int:
        """The index of a category; None is enough where the model knows but one.

        Raises:
            ValueError: An unknown or missing category.
        """
        classes = adapted.classes
        if category is None and len(classes) > 1:
            raise ValueError(f"name the category of the clouds: --category, one of {', '.join(classes)}")
        if category is not None and category not in classes:
            raise ValueError(f"category must be one of {', '.join(classes)}, got {category!r}")
        return 0 if category is None else classes.index(category)

    @torch.no_grad()
    def label_points(self, adapted: Adapted, points: Tensor, category: int = 0, seed: int = 0) -> Tensor:
        """Part of every point of one cloud, whose tokens are made of as many points as in training."""
        index = torch.tensor([category])
        inputs = {"category": index.to(adapted.device)} if adapted.model.num_categories else {}
        cloud = fit(points, adapted.num_points)[None].to(adapted.device)
        logits = adapted.model(cloud, query=points[None].to(adapted.device), **inputs).float().cpu()
        return predicted_parts(require_finite_logits(logits), index, _allowed(adapted, category))[0]

    def card(self, adapted: Adapted, points: Tensor, name: str, observe: Observe, category: int = 0) -> Card:
        """A cloud of any number of points, in the colours of its parts."""
        return self._card(adapted, fit(points, adapted.num_points), name, observe, category, None)

    def examples(self, clouds: PartClouds, count: int) -> list[int]:
        """One cloud of each class before a second of any."""
        return one_of_each(clouds.labels, count)

    def test_card(self, adapted: Adapted, clouds: PartClouds, index: int, observe: Observe) -> Card:
        """One of the gathered test clouds, with its true parts."""
        category, true = int(clouds.labels[index]), clouds.fixed_parts()[index]
        return self._card(adapted, clouds.fixed()[index], clouds.names[index], observe, category, true)

    def _card(
        self, adapted: Adapted, xyz: Tensor, name: str, observe: Observe, category: int, true: Tensor | None
    ) -> Card:
        index, parts = torch.tensor([category]), self.label_names(adapted)
        inputs = {"category": index} if adapted.model.num_categories else {}
        observation = observe(adapted.model, xyz, **inputs)
        labels = predicted_parts(observation.output[None], index, _allowed(adapted, category))[0]
        layers: dict[str, tuple[Tensor, Sequence[str]]] = {PART: (labels, parts)}
        right = None
        if true is not None:
            layers[TRUE_PART] = (true, parts)
            right = float((labels == true).float().mean())
        return Card(name, xyz, adapted.classes[category], right, None, layers, observation.layers, observation.memory)


def _allowed(adapted: Adapted, category: int) -> Tensor:
    """Which parts each category has, filled in for one category. bool [categories, parts]"""
    allowed = torch.zeros(len(adapted.classes), len(adapted.metadata["parts"]), dtype=torch.bool)
    allowed[category, adapted.metadata["parts_of"][category]] = True
    return allowed
