"""`pointpeft evaluate`: the adapter of a run on test clouds."""

from pointpeft.cli.table import print_rows
from pointpeft.runs.config import EvaluateConfig

__all__ = ["EvaluateConfig", "run"]


def run(command: EvaluateConfig) -> int:
    """Evaluates and prints the accuracy, the weakest classes and where the report is."""
    from pointpeft.runs.evaluate import evaluate
    from pointpeft.training.processes import rank_and_world

    facts = evaluate(command)
    if rank_and_world()[0] > 0:
        return 0
    test, (first, *others) = facts["test"], facts["numbers"]
    key = "accuracy" if facts["task"] == "classification" else "mIoU"
    each = {name: entry for name, entry in facts["per class"].items() if entry[key] is not None}
    weakest = sorted(each.items(), key=lambda item: item[1][key])[:3]
    passes = f"{facts['vote']} passes, test-time augmentation {facts['test-time augmentation']}"
    selection = facts["selection"]
    print_rows(
        {
            first: f"{test[first]:.2%} of {test['clouds']} clouds",
            **{name: f"{test[name]:.2%}" for name in others if name != "loss"},
            "weakest classes": ", ".join(f"{name} {entry[key]:.0%}" for name, entry in weakest),
            "vote": passes if facts["vote"] > 1 else "none: one clean pass",
            **{f"with {points} points": f"{m[first]:.2%}" for points, m in facts["by points per cloud"].items()},
            **({"epoch selected": selection["meaning"]} if selection else {}),
            **({"note": "; ".join(facts["notes"])} if facts["notes"] else {}),
            "report": f"{facts['folder']}/{facts['page']}",
        }
    )
    return 0
