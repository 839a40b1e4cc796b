"""A run's adapter on test clouds, and on clouds without labels."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pointpeft.checkpoints import load_adapter
from pointpeft.checkpoints.adapter import read_config
from pointpeft.data import DataError
from pointpeft.files import write_atomically
from pointpeft.runs.config import EvaluateConfig
from pointpeft.runs.plan import DataPlan, data_of_run, plan_evaluate
from pointpeft.runs.result import EvaluateResult, write_result
from pointpeft.runs.versions import versions
from pointpeft.tasks.adapted import Adapted
from pointpeft.tasks.base import AnyTask, GatheredClouds, create_task
from pointpeft.tasks.batches import fit
from pointpeft.tasks.inference import forward_all
from pointpeft.tasks.parts.report import write_prediction
from pointpeft.tasks.storage import should_read_lazily
from pointpeft.training.divergence import NotFiniteError, require_finite_logits, require_finite_weights
from pointpeft.training.loop import make_accelerator


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
    missing = [name for name in ("classes", "points", "clouds_normalized") if name not in metadata]
    if missing:
        raise ValueError(f"{folder / 'adapter_config.json'} names no {' and no '.join(missing)} in its metadata")
    model = load_adapter(folder).to(device).eval()
    require_finite_weights(model.state_dict(), f"the adapter in {folder}")
    classes, points = tuple(metadata["classes"]), int(metadata["points"])
    return Adapted(model, classes, points, bool(metadata["clouds_normalized"]), metadata)


def evaluate(config: EvaluateConfig) -> EvaluateResult:
    """Tests a run's adapter and writes `result.json`, plots and the page or picture of its mistakes.

    Raises:
        ValueError: No finished run, or clouds of a class that it does not know.
    """
    plan = plan_evaluate(config)
    accelerator = make_accelerator(plan.device)
    adapted = load_run(plan.run, accelerator.device)
    task = create_task(adapted.model.task)
    data = plan.data
    if data is None:
        stored = data_of_run(adapter_folder(plan.run).parent)
        drop = plan.drop_non_finite or stored.drop_non_finite
        data = replace(stored, drop_non_finite=drop, clouds_in=plan.clouds_in)
    clouds = _test_clouds(adapted, task, data)
    fields = adapted.model.backbone.config
    clouds.require_points(fields.group_size, f"group_size = {fields.group_size} neighbours")
    fewest = max(fields.num_groups, fields.group_size)
    for points in plan.densities:
        if not fewest <= points <= adapted.num_points:
            raise ValueError(f"densities must be between {fewest} and {adapted.num_points} points, got {points}")
    voting = plan.voting(task)
    started = time.perf_counter()
    title = None if plan.quiet else "evaluate"
    metrics, answers = task.test(adapted.model, clouds, plan.batch_size, voting, title)
    seconds = time.perf_counter() - started
    by_density = {
        str(points): task.test(adapted.model, clouds.thinned(points, plan.seed), plan.batch_size, voting, title)[0]
        for points in plan.densities
    }
    result = EvaluateResult(
        folder=plan.folder,
        task=task.name,
        test=metrics.summary(),
        by_points_per_cloud={points: measured.summary() for points, measured in by_density.items()},
        data=data.source,
        clouds_in="disk" if clouds.on_disk else "memory",
        points=adapted.num_points,
        votes=voting.votes,
        test_augment=voting.augment if voting.votes > 1 else "none",
        selection=adapted.metadata.get("selection"),
        clouds_per_second=round(len(clouds) * voting.votes / seconds, 1),
        notes=tuple(clouds.notes),
        per_class=metrics.per_class(clouds.classes),
        versions=versions(),
    )
    if accelerator.is_main_process:
        plan.folder.mkdir(parents=True, exist_ok=True)
        task.report(plan.folder, clouds, answers, metrics)
        write_result(result)
    return result


def _test_clouds(adapted: Adapted, task: AnyTask, data: DataPlan) -> GatheredClouds:
    """Test clouds, their classes numbered as the adapter's."""
    on_disk = should_read_lazily(data.source, data.clouds_in, adapted.num_points, ("test",), task)
    lazy, gathered = ({"lazy": True}, {"on_disk": True}) if on_disk else ({}, {})
    options = lazy | ({"drop_non_finite": True} if data.drop_non_finite else {})
    clouds = task.gather(task.load(data.source, "test", data.up_axis, **options), adapted.num_points, **gathered)
    task.adopt(clouds, adapted.metadata, data.source)
    return clouds


def clouds_of_run(run: Path, adapted: Adapted) -> GatheredClouds:
    """The test clouds of the data that a run was trained on, in memory, their classes numbered as the adapter's.

    Raises:
        ValueError: An adapter alone, which does not say where its data lay, or data that has changed.
    """
    data = replace(data_of_run(adapter_folder(run).parent), clouds_in="memory")
    return _test_clouds(adapted, create_task(adapted.model.task), data)


def predict(
    adapted: Adapted, paths: Sequence[Path], top: int = 3, *, drop_non_finite: bool = False
) -> list[dict[str, Any]]:
    """Classifies files.

    Returns:
        One dict per file: "file" and either "class", "probability" and "top" [(class, probability)], or "error"; and
        "left_out", how many points were not finite, where `drop_non_finite` left some out.
    """
    task = create_task(adapted.model.task)
    results: list[dict[str, Any]] = []
    for path in paths:
        try:
            dropped: dict[str, int] = {}
            drop = dropped if drop_non_finite else False
            points = task.read(adapted, path, drop)
        except (DataError, OSError) as error:
            results.append({"file": str(path), "error": str(error)})
            continue
        cloud = fit(points, adapted.num_points)[None]
        try:
            logits = require_finite_logits(forward_all(adapted.model, cloud, 1, adapted.device))
        except NotFiniteError as error:
            results.append({"file": str(path), "error": f"{path}: {error}"})
            continue
        probabilities = logits.softmax(1)[0]
        best = probabilities.topk(min(top, len(adapted.classes)))
        ranked = [
            (adapted.classes[i], round(p, 4)) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        left_out = {"left_out": sum(dropped.values())} if dropped else {}
        results.append(
            {"file": str(path), "class": ranked[0][0], "probability": ranked[0][1], "top": ranked, **left_out}
        )
    return results


def predict_points(
    adapted: Adapted, paths: Sequence[Path], folder: Path, category: str | None = None, seed: int = 0
) -> list[dict[str, Any]]:
    """Labels every point of files, and draws them.

    In part segmentation the tokens are made of as many points as the model was trained with, and every point of the
    file is labelled. Scenes are classified by a sliding window; their coordinates are in metres, z up.

    Args:
        adapted: A model of part or semantic segmentation.
        paths: The files.
        folder: Receives STEM.labels.png, and STEM.labels.npy with the label of each point in the file's order, int64.
        category: What the clouds are, where the model knows several categories.
        seed: Of the windows.

    Returns:
        One dict per file: "file" and either "parts" {name: share of the points}, "labels", "picture", or "error".

    Raises:
        ValueError: An unknown or missing category, or two files of one name.
    """
    task = create_task(adapted.model.task)
    names, index = task.label_names(adapted), task.category_index(adapted, category)
    stems = [Path(path).stem for path in paths]
    if len(set(stems)) < len(stems):
        raise ValueError("two files of one name would write the same output; label them one after another")
    results: list[dict[str, Any]] = []
    folder.mkdir(parents=True, exist_ok=True)
    for path in map(Path, paths):
        try:
            points = task.read(adapted, path)
        except (DataError, OSError) as error:
            results.append({"file": str(path), "error": str(error)})
            continue
        try:
            labels = task.label_points(adapted, points, index, seed)
        except NotFiniteError as error:
            results.append({"file": str(path), "error": f"{path}: {error}"})
            continue
        picture, array = folder / f"{path.stem}.labels.png", folder / f"{path.stem}.labels.npy"
        write_prediction(picture, points, labels, names, adapted.metadata["up_axis"], path.name)
        write_atomically(array, lambda temporary, labels=labels: _save_array(temporary, labels))
        counts = labels.bincount(minlength=len(names)).tolist()
        shares = {name: round(n / len(labels), 4) for name, n in zip(names, counts, strict=True) if n}
        results.append({"file": str(path), "parts": shares, "labels": str(array), "picture": str(picture)})
    return results


def _save_array(path: Path, labels: torch.Tensor) -> None:
    with open(path, "wb") as file:  # given a name, numpy would add an ending to it
        np.save(file, labels.numpy())
