"""`pointpeft few-shot`: few clouds per class, many folds, one table."""

import sys

from pointpeft.runs.config import FewShotConfig

__all__ = ["FewShotConfig", "run"]


def run(command: FewShotConfig) -> int:
    """Adapts to all folds and prints the table; 1 when a run failed."""
    from pointpeft.runs.comparison.few_shot import few_shot, markdown

    result = few_shot(command)
    for name, error in result.failures.items():
        print(f"pointpeft: error: {name}: {error}", file=sys.stderr)
    if result.rows:
        print(markdown(result), end="")
        print(
            f"\n{command.epochs} epochs each; epoch kept: {result.protocol.selection}; "
            f"± is the standard deviation over folds; table and runs in {result.folder}"
        )
    return 1 if result.failures else 0
