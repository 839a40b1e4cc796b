"""A run's adapter on test clouds, and on clouds without labels."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pointpeft.checkpoints import load_adapter
from pointpeft.checkpoints.adapter import read_config
from pointpeft.checkpoints.files import write_json
from pointpeft.data import DataError, load_dataset, read_points
from pointpeft.training.clouds import Clouds, fit
from pointpeft.training.config import EvaluateConfig, FinetuneConfig
from pointpeft.training.inference import forward_all, voted_logits
from pointpeft.training.loop import make_accelerator
from pointpeft.training.metrics import measure
from pointpeft.training.report import write_report
from pointpeft.training.run_folder import RunFolder
from pointpeft.training.versions import versions


@dataclass(frozen=True)
class Adapted:
    """A model with an adapter, and what it was trained on.

    Attributes:
        model: On its device, in evaluation mode.
        classes: Names by index of the logits.
        num_points: Points per cloud it was trained with.
        normalized: Whether its training clouds were centred and scaled to the unit sphere; new ones must be, too.
    """

    model: Any
    classes: tuple[str, ...]
    num_points: int
    normalized: bool

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return next(self.model.parameters()).device


def adapter_folder(run: Path) -> Path:
    """The adapter of a run folder, or the folder itself where it is an adapter.

    Raises:
        ValueError: Neither.
    """
    run = Path(run)
    for folder in (run / "adapter", run):
        if (folder / "adapter_config.json").is_file():
            return folder
    if (run / "config.json").is_file():
        if sorted(run.glob("seed-*")):
            raise ValueError(f"{run} holds several seeds; name one of them: {run / 'seed-0'}")
        raise ValueError(f"the run in {run} is not finished; go on with: pointpeft finetune --resume {run}")
    raise ValueError(f"{run} is neither a run folder nor an adapter: it has no adapter_config.json")


def load_run(run: Path, device: torch.device) -> Adapted:
    """Rebuilds the adapted model of a run folder or an adapter folder.

    Raises:
        ValueError: There is none, or it lacks what evaluation needs.
    """
    folder = adapter_folder(run)
    metadata = read_config(folder)["metadata"]
    missing = [name for name in ("classes", "points", "clouds normalized") if name not in metadata]
    if missing:
        raise ValueError(f"{folder / 'adapter_config.json'} names no {' and no '.join(missing)} in its metadata")
    model = load_adapter(folder).to(device).eval()
    return Adapted(model, tuple(metadata["classes"]), int(metadata["points"]), bool(metadata["clouds normalized"]))


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Tests a run's adapter and writes `result.json`, plots and the page of misclassified clouds.

    Raises:
        ValueError: No finished run, or clouds of a class that it does not know.
    """
    accelerator = make_accelerator(config.device)
    adapted = load_run(config.run, accelerator.device)
    data, up_axis = config.data, None
    if data is None:
        run = RunFolder(adapter_folder(config.run).parent, main=False).read_config(FinetuneConfig, "finetune")
        data, up_axis = run.data, run.up_axis
    dataset = load_dataset(data, "test", up_axis=up_axis)
    clouds = Clouds(dataset, adapted.num_points)
    unknown = sorted(set(clouds.classes) - set(adapted.classes))
    if unknown:
        raise ValueError(
            f"{data} has classes that the adapter does not know: {', '.join(unknown)}; "
            f"it knows {', '.join(adapted.classes)}"
        )
    # The data set may name fewer classes, or in another order.
    renumber = torch.tensor([adapted.classes.index(name) for name in clouds.classes])
    clouds.labels, clouds.classes = renumber[clouds.labels], adapted.classes
    group_size = adapted.model.backbone.config.group_size
    clouds.require_points(group_size, f"group_size = {group_size} neighbours")
    started = time.perf_counter()
    title = None if config.quiet else "evaluate"
    logits = voted_logits(adapted.model, clouds, config.batch_size, config.vote, config.seed, title)
    seconds = time.perf_counter() - started
    metrics = measure(logits, clouds.labels)
    facts = {
        "test": metrics.summary(),
        "data": data,
        "points": adapted.num_points,
        "vote": config.vote,
        "clouds per second": round(len(clouds) * config.vote / seconds, 1),
        "notes": list(clouds.notes),
        "per class": metrics.per_class(adapted.classes),
        "versions": versions(),
    }
    output = config.output or Path(config.run) / "evaluation"
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        write_report(output, clouds, logits, metrics)
        write_json(output / "result.json", facts)
    return facts | {"folder": str(output)}


def predict(adapted: Adapted, paths: Sequence[Path], top: int = 3) -> list[dict[str, Any]]:
    """Classifies files.

    Returns:
        One dict per file: "file" and either "class", "probability" and "top" [(class, probability)], or "error".
    """
    group_size = adapted.model.backbone.config.group_size
    results = []
    for path in paths:
        try:
            points = read_points(path, normalized=adapted.normalized)
            if len(points) < group_size:
                raise DataError(f"{path} has {len(points)} points, at least group_size = {group_size} are needed")
        except (DataError, OSError) as error:
            results.append({"file": str(path), "error": str(error)})
            continue
        cloud = fit(points, adapted.num_points)[None]
        probabilities = forward_all(adapted.model, cloud, 1, adapted.device).softmax(1)[0]
        best = probabilities.topk(min(top, len(adapted.classes)))
        ranked = [
            (adapted.classes[i], round(p, 4)) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        results.append({"file": str(path), "class": ranked[0][0], "probability": ranked[0][1], "top": ranked})
    return results
