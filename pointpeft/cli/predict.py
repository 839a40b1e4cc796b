"""`pointpeft predict`: classify files with the adapter of a run."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass(frozen=True)
class Predict:
    """Classify clouds or meshes with the adapter of a run.

    Prints one line per file: class, probability, file. A file that cannot be read is reported on the error stream, the
    others are still classified, and the exit code is 1.
    """

    run: Annotated[Path, Positional, arg(metavar="RUN")]
    """Run folder of `pointpeft finetune`, or its `adapter` folder alone."""
    files: Annotated[tuple[Path, ...], Positional, arg(metavar="FILE")]
    """Files of any type that `pointpeft finetune` reads: .ply .npy .pcd .las .xyz .off .obj .stl …"""
    json: bool = False
    """Print one JSON list, with the best three classes of each file."""
    device: Annotated[str, arg(metavar="cpu|cuda|cuda:N")] = "auto"
    """Where to compute; `auto` takes a GPU where there is one."""


def run(command: Predict) -> int:
    """Classifies the files; 1 when any of them could not be read."""
    from pointpeft.training.evaluation import load_run, predict
    from pointpeft.training.loop import make_accelerator

    if not command.files:
        raise ValueError("name at least one file to classify")
    results = predict(load_run(command.run, make_accelerator(command.device).device), command.files)
    if command.json:
        print(json.dumps(results, indent=2))
    for result in results:
        if "error" in result:
            print(f"pointpeft: error: {result['error']}", file=sys.stderr)
        elif not command.json:
            print(f"{result['class']:24} {result['probability']:7.1%}  {result['file']}")
    return 1 if any("error" in result for result in results) else 0
