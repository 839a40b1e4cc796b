"""Few-shot adaptation over folds, method by method, into one table."""

import statistics
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from pointpeft.escapes import csv_text, markdown_text
from pointpeft.files import write_json
from pointpeft.runs.comparison.compare import deviation, require_same_inputs, require_same_recipe
from pointpeft.runs.comparison.complete import complete
from pointpeft.runs.comparison.plan import FewShotPlan, PlannedRun, plan_few_shot
from pointpeft.runs.config import FewShotConfig
from pointpeft.runs.result import FinetuneResult, read_result
from pointpeft.training.run_folder import RunFolder, write_text
from pointpeft.training.selection import MEANING

FREE = ("methods", "folds", "output", "quiet", "device")
"""Options that may differ between the commands that complete one table."""
SCORE = "overall_accuracy"


@dataclass(frozen=True)
class FoldsRow:
    """Results of a method over its folds.

    Attributes:
        method: As given, METHOD or METHOD:NAME=VALUE,...
        trained: Parameters that were trained.
        trained_percent: Of all parameters.
        trained_without_head: Trained parameters but for those of the head.
        overall_accuracy: Mean over folds.
        folds: How many.
        epoch_kept: The rule of selection.
    """

    method: str
    trained: int
    trained_percent: float
    trained_without_head: int
    overall_accuracy: float
    std: float
    folds: int
    epoch_kept: str


@dataclass(frozen=True)
class Protocol:
    """How the numbers of the table were measured."""

    ways: int
    shots: int
    data: str
    epochs: int
    selection: str
    test_set_used: bool
    votes: int = 1


@dataclass(frozen=True)
class FewShotResult:
    """A table of methods over folds.

    Attributes:
        rows: One per method that has a result, in the order given.
        accuracies: Of each method by fold.
        failures: What went wrong, by the name of the run.
        folder: Holds the runs, the tables and `result.json`.
    """

    rows: list[FoldsRow]
    accuracies: dict[str, dict[str, float]]
    failures: dict[str, str]
    protocol: Protocol
    folder: Path


def few_shot(config: FewShotConfig) -> FewShotResult:
    """Adapts to every fold with every method, and tabulates them.

    A fold whose result is there is not repeated, a stopped one goes on: the same command again completes the table.

    Raises:
        InUseError: Another process is at the same folds.
        ValueError: A number out of bounds, no method, a method twice, or a folder of runs of other options or data.
    """
    plan = plan_few_shot(config)
    folder = RunFolder(plan.folder)
    with closing(folder.lock()):
        require_same_recipe(config, folder, "few-shot", FREE)
        require_same_inputs(plan.data, plan.runs, folder)
        return _few_shot(plan)


def _few_shot(plan: FewShotPlan) -> FewShotResult:
    failures = {}
    # Fold by fold, so that a stopped comparison has all methods on the same folds.
    for fold in range(plan.folds):
        for runs in plan.runs.values():
            error = complete(runs[fold])
            if error:
                failures[runs[fold].name] = error
    results = {entry: _results(runs) for entry, runs in plan.runs.items()}
    result = FewShotResult(
        rows=[_row(entry, list(by_fold.values())) for entry, by_fold in results.items() if by_fold],
        accuracies={
            entry: {str(fold): each.test[SCORE] for fold, each in by_fold.items()} for entry, by_fold in results.items()
        },
        failures=failures,
        protocol=Protocol(
            plan.ways, plan.shots, plan.data, plan.epochs, MEANING[plan.rule], test_set_used=plan.rule == "test-best"
        ),
        folder=plan.folder,
    )
    if result.rows:
        write_json(plan.folder / "result.json", asdict(result) | {"folder": str(plan.folder)})
        rows = [asdict(row) for row in result.rows]
        write_text(plan.folder / "table.csv", csv_text(list(rows[0]), rows))
        write_text(plan.folder / "table.md", markdown(result))
    return result


def markdown(result: FewShotResult) -> str:
    """The table for a README."""
    protocol = result.protocol
    lines = [
        f"| method | trained | of all | {protocol.ways}-way {protocol.shots}-shot accuracy | folds |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in result.rows:
        lines.append(
            f"| {markdown_text(row.method)} | {row.trained:,} | {row.trained_percent:.1f} % | "
            f"{row.overall_accuracy:.1%} ± {row.std:.1%} | {row.folds} |"
        )
    if protocol.test_set_used:
        lines.append(f"\nEpoch kept: {MEANING['test-best']}.")
    return "\n".join(lines) + "\n"


def _results(runs: list[PlannedRun]) -> dict[int, FinetuneResult]:
    """Results of the finished folds, by fold."""
    return {fold: read_result(run.folder) for fold, run in enumerate(runs) if run.result.exists()}


def _row(entry: str, results: list[FinetuneResult]) -> FoldsRow:
    accuracies = [result.test[SCORE] for result in results]
    first = results[0]
    return FoldsRow(
        method=entry,
        trained=first.trainable_parameters,
        trained_percent=round(100 * first.trainable_parameters / first.parameters, 2),
        trained_without_head=first.trainable_parameters_without_head,
        overall_accuracy=round(statistics.fmean(accuracies), 4),
        std=deviation(accuracies),
        folds=len(accuracies),
        epoch_kept=first.selection.rule,
    )
