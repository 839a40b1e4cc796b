"""`pointpeft evaluate`: the adapter of a run on test clouds."""

from pointpeft.cli.table import print_rows
from pointpeft.training.config import EvaluateConfig

__all__ = ["EvaluateConfig", "run"]


def run(command: EvaluateConfig) -> int:
    """Evaluates and prints the accuracy, the weakest classes and where the report is."""
    from pointpeft.training.evaluation import evaluate

    facts = evaluate(command)
    test = facts["test"]
    each = {name: entry for name, entry in facts["per class"].items() if entry["clouds"]}
    weakest = sorted(each.items(), key=lambda item: item[1]["accuracy"])[:3]
    print_rows(
        {
            "overall accuracy": f"{test['overall accuracy']:.2%} of {test['clouds']} clouds",
            "mean class accuracy": f"{test['mean class accuracy']:.2%}",
            "weakest classes": ", ".join(f"{name} {entry['accuracy']:.0%}" for name, entry in weakest),
            "vote": facts["vote"],
            **({"note": "; ".join(facts["notes"])} if facts["notes"] else {}),
            "report": f"{facts['folder']}/report.html",
        }
    )
    return 0
