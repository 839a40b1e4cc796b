"""`pointpeft evaluate`: the adapter of a run on test clouds."""

from pointpeft.cli.table import print_rows
from pointpeft.runs.config import EvaluateConfig

__all__ = ["EvaluateConfig", "run"]


def run(command: EvaluateConfig) -> int:
    """Evaluates and prints the accuracy, the weakest classes and where the report is."""
    from pointpeft.runs.evaluate import evaluate
    from pointpeft.tasks.base import create_task, heading
    from pointpeft.training.processes import rank_and_world

    result = evaluate(command)
    if rank_and_world()[0] > 0:
        return 0
    task = create_task(result.task)
    (first, *others), number = task.numbers, task.class_number
    each = {name: entry[number] for name, entry in result.per_class.items() if entry[number] is not None}
    weakest = sorted(each.items(), key=lambda item: item[1])[:3]
    passes = f"{result.votes} passes, test-time augmentation {result.test_augment}"
    print_rows(
        {
            heading(first): f"{result.test[first]:.2%} of {result.test['clouds']} clouds",
            **{heading(name): f"{result.test[name]:.2%}" for name in others if name != "loss"},
            "weakest classes": ", ".join(f"{name} {value:.0%}" for name, value in weakest),
            "votes": passes if result.votes > 1 else "none: one clean pass",
            **{f"with {points} points": f"{test[first]:.2%}" for points, test in result.by_points_per_cloud.items()},
            **({"epoch selected": result.selection["meaning"]} if result.selection else {}),
            **({"note": "; ".join(result.notes)} if result.notes else {}),
            "report": f"{result.folder}/{task.page}",
        }
    )
    return 0
