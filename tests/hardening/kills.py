"""Kills one training run again and again at random moments: `python -m tests.hardening.kills --kills 60 --seed 0`.

After so many kills the run is left alone; its weights and its result must be those of a run that was never killed, to
the bit, every file that it leaves on its way must be whole, and no lock or temporary file may stay.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

torch.set_num_threads(1)  # a fork keeps one thread only

from tests.clouds import write_clouds  # noqa: E402
from tests.hardening.faults.inject import preload  # noqa: E402
from tests.hardening.faults.runs import OPTIONS, Child, quietly, run, same, sound  # noqa: E402
from tests.hardening.fuzz.driver import write  # noqa: E402

AHEAD = 2.0  # a process is killed after the time of its start and of so many epochs, at most


def arguments(data: Path, folder: Path, epochs: int) -> list[str]:
    return ["finetune", str(data), *OPTIONS, f"--epochs={epochs}", f"--output={folder}"]


def kill_again_and_again(root: Path, kills: int, seed: int) -> dict[str, Any]:
    """Counts of the kills and what went wrong."""
    chance = random.Random(seed)
    data, whole, hurt = write_clouds(root / "scans", per_class=5), root / "whole", root / "hurt"
    epochs = int(AHEAD + 1) * kills + 5
    _, _, start = run(arguments(data, root / "first", 1))
    _, _, start = run(arguments(data, root / "short", 1))  # the first one also warms up caches of files
    code, said, seconds = run(arguments(data, whole, epochs))
    if code:
        raise SystemExit(f"the undisturbed run ended with {code}: {said}")
    reach = start + AHEAD * (seconds - start) / epochs
    failures: list[dict[str, Any]] = []
    killed = ended = 0
    while killed < kills:
        begun = (hurt / "config.json").exists()
        child = Child(["finetune", "--resume", str(hurt)] if begun else arguments(data, hurt, epochs))
        moment = chance.uniform(0, reach)
        time.sleep(moment)
        child.kill(signal.SIGKILL)
        code, said = child.wait(), child.output()
        child.close()
        if code == -signal.SIGKILL:
            killed += 1
            wrong = sound(hurt) if hurt.exists() else []
        else:
            ended += 1
            wrong = [] if code == 0 else [f"ended by itself with {code}: {said[-1500:]}"]
        failures += [{"kind": "kill", "why": why, "moment": round(moment, 3)} for why in wrong]
        if ended > kills:
            raise SystemExit("the run ends before it can be killed")
    code, said, _ = run(["finetune", "--resume", str(hurt)])
    difference = f"ended with {code}: {said[-1500:]}" if code else same(whole, hurt)
    rest = [str(path) for path in hurt.rglob(".*") if path.name == ".lock" or path.suffix == ".tmp"]
    if difference or rest:
        failures.append({"kind": "resumed", "why": difference or f"left behind: {rest}"})
    return {
        "outcomes": {"kill": killed, "ended before it": ended, "same bits": int(not difference)},
        "failures": failures,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hardening.kills", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write the counts here, as JSON")
    given = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        quietly(lambda: preload(Path(folder)))
        report = kill_again_and_again(Path(folder), given.kills, given.seed)
    report = {
        "what": "tests.hardening.kills",
        "seed": given.seed,
        "cases": given.kills,
        "seconds": round(time.monotonic() - started, 1),
        **report,
        "failed": len(report["failures"]),
    }
    if given.output:
        write(given.output, report)
    print(json.dumps(report, indent=2))
    sys.exit(1 if report["failures"] else 0)


if __name__ == "__main__":
    main()
