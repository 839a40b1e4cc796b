"""Destinations of a run's log beside its folder: TensorBoard, and optionally a tracker."""

import hashlib
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

PROJECT, NONE = "pointpeft", "none"


class Board:
    """TensorBoard's file in a run folder; where it is not installed, a note is printed once.

    Args:
        folder: Of the run.
        epoch: The first to be written: rows of a killed run from there on are dropped.
    """

    _said = False

    def __init__(self, folder: Path, epoch: int) -> None:
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            if not Board._said:
                Board._said = True
                print(
                    "TensorBoard is not installed (pip install 'pointpeft[log]'): the log is in log.csv alone",
                    file=sys.stderr,
                )
            return
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=epoch)

    def log(self, row: dict[str, float]) -> None:
        """Adds the numbers of an epoch."""
        if self._writer is not None:
            for name, value in row.items():
                if name != "epoch":
                    self._writer.add_scalar(name, value, int(row["epoch"]))
            self._writer.flush()

    def close(self) -> None:
        """Ends the file."""
        if self._writer is not None:
            self._writer.close()


def require_tracker(name: str) -> None:
    """Checks that the package of a tracker is installed.

    Raises:
        ImportError: Its package is not installed.
    """
    if name != NONE:
        try:
            import_module(name)
        except ImportError as error:
            raise ImportError(f"track {name} needs the package {name}: pip install 'pointpeft[track]'") from error


class Tracker:
    """A run of Weights & Biases or Trackio, which have one interface; a resumed run continues there.

    Where and whether they send anything is theirs to say: `WANDB_MODE=offline`, `TRACKIO_DIR`.

    Args:
        name: wandb or trackio.
        folder: Of the run, whose name the tracked one has.
        config: The run's options.
    """

    def __init__(self, name: str, folder: Path, config: dict[str, Any]) -> None:
        place = folder.resolve()
        title = f"{place.parent.name}/{place.name}" if place.name.startswith("seed-") else place.name
        options: dict[str, Any] = {"project": PROJECT, "name": title, "config": config, "resume": "allow"}
        if name == "wandb":
            options |= {"dir": str(place), "id": hashlib.sha256(str(place).encode()).hexdigest()[:16]}
        self._run = import_module(name).init(**options)

    def log(self, row: dict[str, float]) -> None:
        """Adds the numbers of an epoch."""
        self._run.log({name: value for name, value in row.items() if name != "epoch"}, step=int(row["epoch"]))

    def close(self) -> None:
        """Ends the tracked run."""
        self._run.finish()
