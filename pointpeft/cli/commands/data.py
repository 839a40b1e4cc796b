"""`pointpeft data`: check a data set before training on it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional


@dataclass(frozen=True)
class Data:
    """Check a data set file by file: report contents, missing and broken files, and how to repair them.

    Exit code 1 when anything is broken.
    """

    action: Positional[Literal["check"]]
    """What to do."""
    path: Positional[Path]
    """Folder or file of clouds, in any layout that `pointpeft finetune` reads."""
    labels: Literal["clouds", "parts", "scenes"] = "clouds"
    """What is labelled: whole clouds, points of `parts` of objects, or points of `scenes`."""
    drop_non_finite: bool = False
    """Drop points that are not finite, as depth cameras mark missing measurements; they are counted."""
    json: bool = False
    """Print one JSON object instead of lines."""


def run(command: Data) -> int:
    """Prints the report; 1 when the data set cannot be used as it is."""
    from pointpeft.data import check

    report = check(command.path, labels=command.labels, drop_non_finite=command.drop_non_finite)
    if command.json:
        print(json.dumps({"path": str(command.path), "ok": report.ok, "lines": list(report.lines)}, indent=2))
    else:
        print("\n".join(report.lines))
    return 0 if report.ok else 1
