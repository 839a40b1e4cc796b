"""Few-shot adaptation over folds, method by method, into one table."""

import statistics
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from pointpeft.data.sets.few_shot import source_of
from pointpeft.escapes import csv_text, markdown_text
from pointpeft.files import write_json
from pointpeft.runs.comparison.compare import plain_name, run_config, same_inputs, same_recipe
from pointpeft.runs.comparison.complete import complete, result_path
from pointpeft.runs.config import FewShotConfig, FinetuneConfig
from pointpeft.training.run_folder import RunFolder, read_json, write_text
from pointpeft.training.selection import MEANING

COLUMNS = ("method", "trained", "trained %", "without head", "overall accuracy", "std", "folds", "epoch kept")


def few_shot(config: FewShotConfig) -> dict[str, Any]:
    """Adapts to every fold with every method, and tabulates them.

    A fold whose result is there is not repeated, a stopped one goes on: the same command again completes the table.

    Returns:
        "rows", one dict of `COLUMNS` per method; "accuracies", those of each fold; "failures", what did not run and
        why; "folder"; "protocol".

    Raises:
        InUseError: Another process is at the same folds.
        ValueError: A number out of bounds, no method, a method twice, or a folder of runs of other options or data.
    """
    if config.folds < 1:
        raise ValueError(f"folds must be at least 1, got {config.folds}")
    if not config.methods or len(set(config.methods)) < len(config.methods):
        raise ValueError(f"name each method once, got {list(config.methods)}")
    setting = f"{config.ways}way{config.shots}shot"
    stem = Path(config.data.split(":")[-1]).name
    folder = RunFolder(config.output or Path("runs") / f"few-shot-{stem}-{setting}")
    with closing(folder.lock()):
        return _few_shot(config, folder)


def _few_shot(config: FewShotConfig, folder: RunFolder) -> dict[str, Any]:
    runs = {entry: [_run(config, entry, fold, folder.path) for fold in range(config.folds)] for entry in config.methods}
    same_recipe(config, folder, "few-shot", ("methods", "folds", "output", "quiet", "device"))
    same_inputs(config.data, [run for wanted in runs.values() for run in wanted], folder)
    failures = {}
    # Fold by fold, so that a stopped comparison has all methods on the same folds.
    for fold in range(config.folds):
        for entry in config.methods:
            error = complete(runs[entry][fold])
            if error:
                failures[f"{entry} fold {fold}"] = error
    results = {entry: _results(wanted) for entry, wanted in runs.items()}
    rows = [_row(entry, found) for entry, found in results.items() if found]
    facts = {
        "rows": rows,
        "accuracies": {
            entry: {str(k): f["test"]["overall accuracy"] for k, f in found.items()} for entry, found in results.items()
        },
        "failures": failures,
        "protocol": {
            "ways": config.ways,
            "shots": config.shots,
            "data": config.data,
            "epochs": config.epochs,
            "selection": MEANING[config.select],
            "test set used to select": config.select == "test-best",
            "vote": 1,
        },
        "folder": str(folder.path),
    }
    if rows:
        write_json(folder.path / "result.json", facts)
        write_text(folder.path / "table.csv", _csv(rows))
        write_text(folder.path / "table.md", markdown(config, rows))
    return facts


def markdown(config: FewShotConfig, rows: list[dict[str, Any]]) -> str:
    """The table for a README."""
    lines = [
        f"| method | trained | of all | {config.ways}-way {config.shots}-shot accuracy | folds |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {markdown_text(row['method'])} | {row['trained']:,} | {row['trained %']:.1f} % | "
            f"{row['overall accuracy']:.1%} ± {row['std']:.1%} | {row['folds']} |"
        )
    if config.select == "test-best":
        lines.append(f"\nEpoch kept: {MEANING['test-best']}.")
    return "\n".join(lines) + "\n"


def _run(config: FewShotConfig, entry: str, fold: int, folder: Path) -> FinetuneConfig:
    run = run_config(config, entry, config.seed, folder / plain_name(entry) / f"fold-{fold}")
    return replace(run, data=source_of(config.data, config.ways, config.shots, fold, config.seed))


def _results(runs: list[FinetuneConfig]) -> dict[int, dict[str, Any]]:
    """The results that are there, by fold."""
    paths = {fold: result_path(run) for fold, run in enumerate(runs)}
    return {fold: read_json(path, "no result") for fold, path in paths.items() if path.exists()}


def _row(entry: str, found: dict[int, dict[str, Any]]) -> dict[str, Any]:
    accuracy = [facts["test"]["overall accuracy"] for facts in found.values()]
    first = next(iter(found.values()))
    return {
        "method": entry,
        "trained": first["trainable parameters"],
        "trained %": round(100 * first["trainable parameters"] / first["parameters"], 2),
        "without head": first["trainable parameters without head"],
        "overall accuracy": round(statistics.fmean(accuracy), 4),
        "std": round(statistics.stdev(accuracy), 4) if len(accuracy) > 1 else 0.0,
        "folds": len(accuracy),
        "epoch kept": first["selection"]["rule"],
    }


def _csv(rows: list[dict[str, Any]]) -> str:
    return csv_text(COLUMNS, rows)
