"""Long runs, flat memory, no open files: `python -m tests.hardening.endurance --steps 10000 --predictions 200000`.

A tiny model trains step after step, then answers prediction after prediction. Memory and open files are measured along
the way; from the first tenth on, neither may grow.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from pointpeft import create_model
from pointpeft.data.formats.readers import read_points
from pointpeft.training.loop import Recipe, make_accelerator, train
from pointpeft.training.run_folder import RunFolder
from tests.clouds import TINY_MODEL, write_clouds
from tests.hardening.fuzz.driver import write

SAMPLES = 20
MOST_GROWTH = 16 << 20  # bytes; allocators settle


class Watch:
    """Resident memory and open files, over the course of a task."""

    def __init__(self, total: int) -> None:
        self.every, self.done = max(1, total // SAMPLES), 0
        self.memory: list[int] = []
        self.handles: list[int] = []

    def step(self) -> None:
        self.done += 1
        if self.done % self.every == 0:
            resident = int(Path("/proc/self/statm").read_text().split()[1])
            self.memory.append(resident * resource.getpagesize())
            self.handles.append(len(os.listdir("/proc/self/fd")))

    def report(self) -> dict[str, Any]:
        settled = len(self.memory) // 10
        return {
            "done": self.done,
            "memory MiB": [round(value / 2**20) for value in self.memory],
            "open files": self.handles,
            "memory growth": max(self.memory[settled:]) - self.memory[settled],
            "open files growth": max(self.handles[settled:]) - self.handles[settled],
        }


class Batches(list[tuple[torch.Tensor, torch.Tensor]]):
    """As the trainer reads them: clouds and labels, and how many clouds each batch has."""

    @property
    def sizes(self) -> list[int]:
        return [len(labels) for _, labels in self]


def options() -> dict[str, Any]:
    pairs = (pair.split("=") for pair in TINY_MODEL)
    return {name: int(value) for name, value in pairs}


def trained(steps: int, folder: Path) -> dict[str, Any]:
    """Training steps of the tiny model through the loop that all commands use: ten steps an epoch."""
    watch = Watch(steps)
    torch.manual_seed(0)
    model = create_model("point_mae_tiny", "dapt", 3, **options())
    data = Batches((torch.randn(8, 64, 3), torch.randint(0, 3, (8,))) for _ in range(10))

    def loss_of(model: Any, points: Any, labels: Any) -> dict[str, torch.Tensor]:
        return {"loss": torch.nn.functional.cross_entropy(model(points), labels)}

    recipe = Recipe(epochs=max(1, steps // 10), lr=1e-4)
    train(
        make_accelerator("cpu"),
        model,
        recipe,
        lambda epoch: data,
        loss_of,
        RunFolder(folder / "run"),
        after_step=watch.step,
    )
    return watch.report()


def predicted(count: int, folder: Path) -> dict[str, Any]:
    """Files read and classified one by one."""
    watch = Watch(count)
    files = sorted(write_clouds(folder / "scans", per_class=4).rglob("*.npy"))
    model = create_model("point_mae_tiny", "dapt", 3, **options()).eval()
    with torch.inference_mode():
        for i in range(count):
            logits = model(read_points(files[i % len(files)], normalized=True)[None, :64])
            if not bool(torch.isfinite(logits).all()):
                raise AssertionError(f"prediction {i} is not finite")
            watch.step()
    return watch.report()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hardening.endurance", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--predictions", type=int, default=200_000)
    parser.add_argument("--output", type=Path, help="write what was measured here, as JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        parts = {
            "training": trained(given.steps, Path(place)),
            "prediction": predicted(given.predictions, Path(place)),
        }
    failures = [
        {"kind": f"{name}: {what}", "why": f"grew by {part[what + ' growth']}"}
        for name, part in parts.items()
        for what, most in (("memory", MOST_GROWTH), ("open files", 0))
        if part[what + " growth"] > most
    ]
    report = {
        "what": "tests.hardening.endurance",
        "cases": sum(part["done"] for part in parts.values()),
        "seconds": round(time.monotonic() - started, 1),
        "outcomes": {f"{name} steps": part["done"] for name, part in parts.items()},
        "parts": parts,
        "failures": failures,
        "failed": len(failures),
    }
    if given.output:
        write(given.output, report)
    print(json.dumps(report, indent=2))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
