"""Methods side by side: the same data, the same recipe, several seeds, one table."""

import csv
import statistics
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pointpeft.files import write_json
from pointpeft.runs.cluster import complete_all
from pointpeft.runs.comparison.complete import complete_in_process
from pointpeft.runs.comparison.paired import paired_p_value
from pointpeft.runs.comparison.plan import ComparePlan, PlannedRun, Runs, plan_compare
from pointpeft.runs.comparison.report import Row, as_csv, caption, latex, markdown, page
from pointpeft.runs.config import CompareConfig, SharedRecipe
from pointpeft.runs.result import FinetuneResult, read_result
from pointpeft.runs.resume import checkpoint_fingerprint, files_fingerprint, require_unchanged
from pointpeft.tasks.base import task_class
from pointpeft.training.run_folder import RunFolder, write_text

FREE = ("methods", "seeds", "seed", "output", "quiet", "device", "ray", "ray_cpus")
"""Options that may differ between the commands that complete one comparison."""


@dataclass(frozen=True)
class Comparison:
    """A table of methods.

    Attributes:
        rows: One per method that has a result, in the order given.
        failures: What went wrong, by the name of the run.
        folder: Holds the runs, the tables and `result.json`.
    """

    rows: list[Row]
    failures: dict[str, str]
    folder: Path


def compare(config: CompareConfig) -> Comparison:
    """Runs every method with every seed, each in a process of its own, and tabulates them.

    A run whose result is there is not repeated, a stopped one goes on: the same command again completes the table.

    Raises:
        InUseError: Another process is at the same comparison.
        ValueError: No method, a method twice, or a folder that holds a comparison of another kind or of other data.
    """
    plan = plan_compare(config)
    folder = RunFolder(plan.folder)
    with closing(folder.lock()):
        require_same_recipe(config, folder, "compare", FREE)
        require_same_inputs(plan.data, plan.runs, folder)
        return _compare(plan)


def _compare(plan: ComparePlan) -> Comparison:
    missing = [run for runs in plan.runs.values() for run in runs if not run.result.exists()]
    if plan.ray is not None and missing:
        failures = complete_all(missing, plan.ray, plan.ray_cpus)
    else:
        failures = {run.name: error for run in missing if (error := complete_in_process(run)) is not None}
    scores = tuple(task_class(plan.task).columns)
    finished = {
        entry: runs for entry, planned in plan.runs.items() if (runs := [run for run in planned if run.result.exists()])
    }
    first = next(iter(finished.values()), [])
    rows = [_row(entry, runs, scores, None if runs is first else first) for entry, runs in finished.items()]
    result = Comparison(rows, failures, plan.folder)
    if rows:
        write_json(plan.folder / "result.json", asdict(result) | {"folder": str(plan.folder)})
        title = f"{len(rows)} methods on {plan.data}, {plan.epochs} epochs"
        write_text(plan.folder / "table.csv", as_csv(rows, plan.task))
        write_text(plan.folder / "table.md", markdown(rows, plan.task) + "\n" + caption(rows, plan.rule) + "\n")
        write_text(plan.folder / "table.tex", latex(rows, plan.rule, plan.task))
        write_text(plan.folder / "table.html", page(rows, plan.rule, title, plan.task))
    return result


def require_same_recipe(config: SharedRecipe, folder: RunFolder, command: str, free: Sequence[str]) -> None:
    """Checks that a folder holds runs of the same recipe; only the options in `free`, such as seeds, may differ.

    Raises:
        ValueError: It holds runs of another recipe.
    """
    if (folder.path / "config.json").exists():
        before = folder.read_config(type(config), command)
        if _plain(replace(before, **{name: getattr(config, name) for name in free})) != _plain(config):
            raise ValueError(
                f"{folder.path} holds a comparison with other options ({folder.path / 'config.json'}); "
                "give the same ones, or another --output"
            )
    folder.write_config(config, command)


def require_same_inputs(data: str, runs: Runs, folder: RunFolder) -> None:
    """Checks that the data and the files of pre-trained weights are those of the folder's first run.

    Raises:
        ValueError: One of them has changed since its first run.
    """
    way_out = "Put it back as it was, or give another --output"
    require_unchanged(folder, f"data {data}", {"files": files_fingerprint(data)}, way_out)
    checkpoints = [run.checkpoint for planned in runs.values() for run in planned if run.checkpoint is not None]
    for checkpoint in dict.fromkeys(checkpoints):
        require_unchanged(folder, f"checkpoint {checkpoint}", checkpoint_fingerprint(checkpoint), way_out)


def _plain(config: SharedRecipe) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(config).items()}


def deviation(values: Sequence[float]) -> float:
    """The standard deviation of a sample, 0 of a single value."""
    return round(statistics.stdev(values), 4) if len(values) > 1 else 0.0


def _row(entry: str, runs: list[PlannedRun], scores: tuple[str, ...], reference: list[PlannedRun] | None) -> Row:
    """The row of a method, compared with the runs of the first one; None where it is the first itself."""
    results = [read_result(run.folder) for run in runs]
    score, second_score = ([result.test[name] for result in results] for name in scores)
    losses = [loss for result in results if (loss := _training_loss(result)) is not None]
    first = results[0]
    return Row(
        method=entry,
        trained=first.trainable_parameters,
        trained_percent=round(100 * first.trainable_parameters / first.parameters, 2),
        trained_without_head=first.trainable_parameters_without_head,
        score=round(statistics.fmean(score), 4),
        score_std=deviation(score),
        second_score=round(statistics.fmean(second_score), 4),
        second_score_std=deviation(second_score),
        training_loss=round(statistics.fmean(losses), 3) if losses else None,
        seeds=len(results),
        peak_memory_mib=max(result.peak_memory_mib for result in results),
        clouds_per_second=round(statistics.median(result.clouds_per_second for result in results), 1),
        training_seconds=round(statistics.median(result.training_seconds for result in results), 1),
        p_value=None if reference is None else _p_value(reference, runs),
    )


def _training_loss(result: FinetuneResult) -> float | None:
    """The training loss of the epoch kept, from the run's log: a higher one than others' means too little training."""
    path = result.folder / "log.csv"
    if not path.exists():
        return None
    with open(path, newline="") as file:
        rows = csv.DictReader(file)
        return next((float(row["loss"]) for row in rows if int(row["epoch"]) == result.selection.epoch), None)


def _p_value(first: list[PlannedRun], second: list[PlannedRun]) -> float | None:
    """The p-value of the paired test over the test clouds, with common seeds; None without any."""
    other = {run.seed: run for run in second}
    pairs = [(_correct(run), _correct(other[run.seed])) for run in first if run.seed in other]
    if not pairs or any(ours is None or theirs is None for ours, theirs in pairs):
        return None
    means = [np.mean([np.asarray(pair[i]) for pair in pairs], axis=0) for i in (0, 1)]
    return round(paired_p_value(*means), 4)


def _correct(run: PlannedRun) -> np.ndarray | None:
    """Whether each test cloud was classified correctly, from the file that the run left; None without that file."""
    path = run.folder / "predictions.csv"
    if not path.exists():
        return None
    with open(path, newline="") as file:
        return np.array([row["class"] == row["predicted"] for row in csv.DictReader(file)], dtype=np.float64)
