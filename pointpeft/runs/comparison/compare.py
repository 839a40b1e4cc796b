"""Methods side by side: the same data, the same recipe, several seeds, one table."""

import csv
import re
import statistics
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pointpeft.files import write_json
from pointpeft.runs.cluster import complete_all
from pointpeft.runs.comparison.complete import complete_in_process, result_path
from pointpeft.runs.comparison.paired import paired_p_value
from pointpeft.runs.comparison.report import as_csv, caption, latex, markdown, page
from pointpeft.runs.config import CompareConfig, FinetuneConfig
from pointpeft.runs.resume import checkpoint_fingerprint, files_fingerprint, require_unchanged
from pointpeft.tasks.base import task_class
from pointpeft.training.run_folder import RunFolder, read_json, write_text


def compare(config: CompareConfig) -> dict[str, Any]:
    """Runs every method with every seed, each in a process of its own, and tabulates them.

    A run whose result is there is not repeated, a stopped one goes on: the same command again completes the table.

    Returns:
        "rows", one dict per method in the order given; "failures", what did not run and why; "folder".

    Raises:
        InUseError: Another process is at the same comparison.
        ValueError: No method, a method twice, or a folder that holds a comparison of another kind or of other data.
    """
    if config.seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {config.seeds}")
    if not config.methods or len(set(config.methods)) < len(config.methods):
        raise ValueError(f"name each method once, got {list(config.methods)}")
    folder = RunFolder(config.output or Path("runs") / f"compare-{Path(config.data.split(':')[-1]).name}")
    with closing(folder.lock()):
        return _compare(config, folder)


def _compare(config: CompareConfig, folder: RunFolder) -> dict[str, Any]:
    seeds = range(config.seed, config.seed + config.seeds)
    runs = {
        entry: [run_config(config, entry, seed, folder.path / plain_name(entry) / f"seed-{seed}") for seed in seeds]
        for entry in config.methods
    }
    same_recipe(config, folder, "compare", ("methods", "seeds", "seed", "output", "quiet", "device", "ray", "ray_cpus"))
    same_inputs(config.data, [run for wanted in runs.values() for run in wanted], folder)
    missing = {
        f"{entry} seed {run.seed}": run
        for entry, wanted in runs.items()
        for run in wanted
        if not result_path(run).exists()
    }
    if config.ray is not None and missing:
        failures = complete_all(missing, config.ray, config.ray_cpus)
    else:
        failures = {name: error for name, run in missing.items() if (error := complete_in_process(run)) is not None}
    rows = [
        _row(entry, wanted, tuple(task_class(config.task).columns))
        for entry, wanted in runs.items()
        if any(result_path(run).exists() for run in wanted)
    ]
    for row in rows:
        row["p against the first"] = None if row is rows[0] else _p_value(runs[rows[0]["method"]], runs[row["method"]])
    facts = {"rows": rows, "failures": failures, "folder": str(folder.path)}
    if rows:
        write_json(folder.path / "result.json", facts)
        title = f"{len(rows)} methods on {config.data}, {config.epochs} epochs"
        write_text(folder.path / "table.csv", as_csv(rows))
        write_text(folder.path / "table.md", markdown(rows, config.task) + "\n" + caption(rows, config.select) + "\n")
        write_text(folder.path / "table.tex", latex(rows, config.select, config.task))
        write_text(folder.path / "table.html", page(rows, config.select, title, config.task))
    return facts


def plain_name(entry: str) -> str:
    """An entry as the name of a folder."""
    return re.sub(r"[^\w.=,-]+", "_", entry)


def run_config(config: Any, entry: str, seed: int, output: Path) -> FinetuneConfig:
    """The run of one entry, METHOD or METHOD:NAME=VALUE,NAME=VALUE, under the recipe of a comparison."""
    method, _, options = entry.partition(":")
    pairs = [pair for pair in options.split(",") if pair]
    checkpoint, lr, kept = config.checkpoint, config.lr, []
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if name == "checkpoint":
            checkpoint = value
        elif name == "lr":
            try:
                lr = float(value)
            except ValueError:
                raise ValueError(f"lr in {entry!r} must be a number, got {value!r}") from None
        elif equals:
            kept.append(pair)
        else:
            raise ValueError(f"a method is METHOD or METHOD:NAME=VALUE,NAME=VALUE, got {entry!r}")
    task: Any = getattr(config, "task", "classification")  # few-shot folds are of clouds
    shared = (
        *("data", "backbone", "epochs", "batch_size", "num_points", "augment"),
        *("drop_non_finite", "select", "device", "precision"),
    )
    return FinetuneConfig(
        **{name: getattr(config, name) for name in shared},
        task=task,
        method=method,
        checkpoint=checkpoint,
        lr=lr,
        set=(*config.set, *kept),
        warmup_epochs=min(5, config.epochs // 4),
        seed=seed,
        probe=False,
        quiet=config.quiet,
        output=output,
    )


def same_recipe(config: Any, folder: RunFolder, command: str, free: Sequence[str]) -> None:
    """A folder holds runs of one recipe; what is `free`, such as methods and seeds, may be added to it.

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


def same_inputs(data: str, runs: Sequence[FinetuneConfig], folder: RunFolder) -> None:
    """A folder holds runs on one state of the data and of each file of pre-trained weights.

    Raises:
        ValueError: One of them has changed since its first run.
    """
    way_out = "Put it back as it was, or give another --output"
    require_unchanged(folder, f"data {data}", {"files": files_fingerprint(data)}, way_out)
    for checkpoint in dict.fromkeys(run.checkpoint for run in runs if run.checkpoint is not None):
        require_unchanged(folder, f"checkpoint {checkpoint}", checkpoint_fingerprint(checkpoint), way_out)


def _plain(config: Any) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(config).items()}


def _row(entry: str, runs: list[FinetuneConfig], scores: tuple[str, ...]) -> dict[str, Any]:
    runs = [run for run in runs if result_path(run).exists()]
    found = [read_json(result_path(run), "no result") for run in runs]
    overall, by_class = ([facts["test"][name] for facts in found] for name in scores)
    first = found[0]
    losses = [loss for run, facts in zip(runs, found, strict=True) if (loss := _training_loss(run, facts)) is not None]
    return {
        "method": entry,
        "trained": first["trainable parameters"],
        "trained %": round(100 * first["trainable parameters"] / first["parameters"], 2),
        "without head": first["trainable parameters without head"],
        scores[0]: round(statistics.fmean(overall), 4),
        "std": round(statistics.stdev(overall), 4) if len(found) > 1 else 0.0,
        scores[1]: round(statistics.fmean(by_class), 4),
        "class std": round(statistics.stdev(by_class), 4) if len(found) > 1 else 0.0,
        "training loss": round(statistics.fmean(losses), 3) if losses else None,
        "seeds": len(found),
        "peak memory MiB": max(facts["peak memory MiB"] for facts in found),
        "clouds per second": round(statistics.median(facts["clouds per second"] for facts in found), 1),
        "training seconds": round(statistics.median(facts["training seconds"] for facts in found), 1),
    }


def _training_loss(run: FinetuneConfig, facts: dict[str, Any]) -> float | None:
    """Of the epoch kept, from the run's log; above the others' it tells of too little training, not of too much."""
    path, epoch = result_path(run).with_name("log.csv"), facts["selection"]["epoch"]
    if not path.exists() or epoch is None:
        return None
    with open(path, newline="") as file:
        return next((float(row["loss"]) for row in csv.DictReader(file) if int(row["epoch"]) == epoch), None)


def _p_value(first: list[FinetuneConfig], second: list[FinetuneConfig]) -> float | None:
    """Of the paired test over the test clouds, with the seeds that both methods have; None without any."""
    pairs = [
        (_right(a), _right(b))
        for a, b in zip(first, second, strict=True)
        if result_path(a).exists() and result_path(b).exists()
    ]
    if not pairs or any(one is None or other is None for one, other in pairs):
        return None
    means = [np.mean([np.asarray(pair[i]) for pair in pairs], axis=0) for i in (0, 1)]
    return round(paired_p_value(*means), 4)


def _right(run: FinetuneConfig) -> np.ndarray | None:
    """Whether each test cloud was classified rightly, from the file that the run left; None without that file."""
    path = result_path(run).with_name("predictions.csv")
    if not path.exists():
        return None
    with open(path, newline="") as file:
        return np.array([row["class"] == row["predicted"] for row in csv.DictReader(file)], dtype=np.float64)
