"""A plugin of pytest that writes each outcome as it comes: `pytest -p benchmarks.gpu.outcomes`.

POINTPEFT_OUTCOMES names the file, a line of JSON a test; pytest's own report is written when all tests have ended.
"""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.gpu import files

SHOWN = 40  # failures in full, and slowest tests
KEPT = 600  # characters of a failure


def pytest_runtest_logreport(report: Any) -> None:
    """Notes the call of a test, and a set-up or tear-down that did not pass."""
    if "PYTEST_XDIST_WORKER" in os.environ or (report.when != "call" and report.passed):
        return
    line = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 2)}
    if report.failed:
        line["why"] = str(report.longrepr)[-KEPT:]
    elif report.skipped and isinstance(report.longrepr, tuple):
        line["why"] = report.longrepr[2]
    with Path(os.environ["POINTPEFT_OUTCOMES"]).open("a") as file:
        file.write(json.dumps(line) + "\n")


def summary(path: Path) -> dict[str, Any] | None:
    """Counts, failures, reasons of skips, and the slowest tests."""
    lines = files.read(path)
    if lines is None:
        return None
    failed = [line for line in lines if line["outcome"] == "failed"]
    return {
        "outcomes": dict(Counter(line["outcome"] for line in lines)),
        "failed": failed[:SHOWN],
        "skipped": dict(Counter(line.get("why", "") for line in lines if line["outcome"] == "skipped")),
        "slowest": sorted(lines, key=lambda line: -line["seconds"])[: SHOWN // 4],
    }
