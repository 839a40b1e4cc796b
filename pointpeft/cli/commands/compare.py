"""`pointpeft compare`: methods side by side."""

import sys

from pointpeft.runs.config import CompareConfig

__all__ = ["CompareConfig", "run"]


def run(command: CompareConfig) -> int:
    """Compares and prints the table; 1 when a run failed."""
    from pointpeft.runs.comparison.compare import compare
    from pointpeft.runs.comparison.report import caption, markdown

    facts = compare(command)
    for name, error in facts["failures"].items():
        print(f"pointpeft: error: {name}: {error}", file=sys.stderr)
    if facts["rows"]:
        print(markdown(facts["rows"], command.task), end="")
        print(f"\n{command.epochs} epochs each; {caption(facts['rows'], command.select)}")
        print(f"table.md, .tex, .csv, .html and the runs are in {facts['folder']}")
    return 1 if facts["failures"] else 0
