"""`pointpeft compare`: methods side by side."""

import sys

from pointpeft.runs.config import CompareConfig

__all__ = ["CompareConfig", "run"]


def run(command: CompareConfig) -> int:
    """Compares and prints the table; 1 when a run failed."""
    from pointpeft.runs.comparison.compare import compare
    from pointpeft.runs.comparison.report import caption, markdown

    result = compare(command)
    for name, error in result.failures.items():
        print(f"pointpeft: error: {name}: {error}", file=sys.stderr)
    if result.rows:
        print(markdown(result.rows, command.task), end="")
        print(f"\n{command.epochs} epochs each; {caption(result.rows, command.select)}")
        print(f"table.md, .tex, .csv, .html and the runs are in {result.folder}")
    return 1 if result.failures else 0
