"""The files of a run, written atomically: a kill at any moment leaves either the old file or the new one."""

import hashlib
import io
from dataclasses import asdict, fields
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.utils import broadcast_object_list

from pointpeft.escapes import csv_text
from pointpeft.files import read_json as load_json
from pointpeft.files import sha256, write_atomically, write_json
from pointpeft.locks import Lock
from pointpeft.training.tracking import NONE, Board, Tracker

Config = TypeVar("Config")
CHECKPOINT = "checkpoint.pt"
LOCK = ".lock"
_SEAL = b"sha256:"


def write_text(path: Path, text: str) -> None:
    """Writes text to a temporary file and renames it; bytes of a name that are no text are written as escapes."""
    write_atomically(path, lambda temporary: temporary.write_bytes(text.encode(errors="backslashreplace")))


class RunFolder:
    """A folder with `config.json`, `checkpoint.pt`, `log.csv`, `result.json` and further files of the run.

    Args:
        path: The folder; created if it does not exist.
        main: Whether this process writes; of several processes only the first does.
    """

    def __init__(self, path: Path, main: bool = True) -> None:
        self.path = Path(path)
        self.main = main
        self._board: Board | None = None
        self._tracker: Tracker | None = None
        self._lock: Lock | None = None
        if main:
            self.path.mkdir(parents=True, exist_ok=True)

    @classmethod
    def new(cls, output: Path | None, stem: str, main: bool = True) -> "RunFolder":
        """A folder for a new run, locked: `output`, which must not hold one yet, or the first free `runs/STEM[-N]`.

        Raises:
            ValueError: `output` already holds a run, or another process is about to put one there.
        """
        if output is None:
            return cls(_first_free(Path("runs"), stem), main).lock()
        folder = cls(output, main).lock()
        if (folder.path / "config.json").exists():
            folder.close()
            raise ValueError(f"output {output} already holds a run; give another folder, or --resume {output}")
        return folder

    def lock(self) -> "RunFolder":
        """Keeps other processes from running in this folder until `close`, or the end of this one.

        Raises:
            InUseError: Another one does; says which.
        """
        if self.main and self._lock is None:
            self._lock = Lock(self.path / LOCK, str(self.path), "give another folder")
        return self

    @classmethod
    def shared(cls, output: Path | None, stem: str, main: bool) -> "RunFolder":
        """As `new`, by one of several processes; all of them call this and get the same folder."""
        folder = cls.new(output, stem) if main else None
        path = broadcast_object_list([None if folder is None else str(folder.path)])[0]
        return cls(Path(path), False) if folder is None else folder

    def write_config(self, config: Any, command: str) -> None:
        """Writes the run's configuration, from which `--resume` and `evaluate` rebuild it."""
        if self.main:
            write_json(self.path / "config.json", {"command": command, **_plain(config)})

    def read_config(self, cls: type[Config], command: str) -> Config:
        """The configuration of the run in this folder.

        Raises:
            ValueError: No such run, or one of another command.
        """
        entries = read_json(self.path / "config.json", f"{self.path} holds no run")
        if hasattr(cls, "upgraded"):  # names of earlier versions
            entries = cls.upgraded(entries)
        command_of_run = entries.pop("command", None)
        if command_of_run != command:
            raise ValueError(f"{self.path} holds a run of `{command_of_run}`; a run of `{command}` is needed")
        known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(set(entries) - set(known))
        if unknown:
            raise ValueError(f"{self.path / 'config.json'} has the unknown entries {', '.join(unknown)}")
        for name, value in entries.items():
            if isinstance(value, list):
                entries[name] = tuple(value)
            elif isinstance(value, str) and "Path" in str(known[name].type):
                entries[name] = Path(value)
        return cls(**entries)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Replaces the checkpoint: tensors and plain values alone, so that it loads without unpickling code.

        Behind them stands their SHA-256, which `torch.load` passes over.
        """
        if self.main:
            write_atomically(self.path / CHECKPOINT, lambda temporary: _write_sealed(temporary, state))

    def load_checkpoint(self, device: torch.device) -> dict[str, Any] | None:
        """The last checkpoint, or None when the run was stopped before its first.

        Raises:
            ValueError: It is cut off, or not as it was written.
        """
        if self.main:  # what a killed process left half-written
            for rest in (*self.path.glob(".*.tmp"), *self.path.glob("*/.*.tmp")):
                rest.unlink(missing_ok=True)
        path = self.path / CHECKPOINT
        if not path.exists():
            return None
        if not _seal_holds(path):
            raise ValueError(
                f"{path} is damaged: its content and its checksum differ. Put a copy back, or remove it to start the "
                "run again from its first epoch"
            )
        # With several processes each names the CPU cpu:N, a device that storages do not support.
        return torch.load(path, map_location="cpu" if device.type == "cpu" else device, weights_only=True)

    def log(self, history: list[dict[str, float]]) -> None:
        """Rewrites `log.csv` from the whole history and adds the last row to TensorBoard and the tracker."""
        if not self.main or not history:
            return
        columns = list(dict.fromkeys(name for row in history for name in row))
        write_text(self.path / "log.csv", csv_text(columns, history))
        if self._board is None:
            self._board = Board(self.path, int(history[-1]["epoch"]))
        for place in (self._board, self._tracker):
            if place is not None:
                place.log(history[-1])

    def track(self, name: str) -> None:
        """Sends the log to a tracker, too, beside the configuration in this folder."""
        if self.main and name != NONE:
            entries = read_json(self.path / "config.json", f"{self.path} holds no run")
            self._tracker = Tracker(name, self.path, {key: entries[key] for key in entries if key != "command"})

    def close(self) -> None:
        """Ends the TensorBoard file, the tracked run and the lock."""
        for place in (self._board, self._tracker):
            if place is not None:
                place.close()
        if self._lock is not None:
            self._lock.release()
        self._board = self._tracker = self._lock = None


def _first_free(parent: Path, stem: str) -> Path:
    """Makes the first folder of a name and a number that is not there, so that no other process gets the same."""
    parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        folder = parent / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError("numbers do not end")


def _plain(config: Any) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}


def _write_sealed(path: Path, state: dict[str, Any]) -> None:
    # Into memory first: PyTorch's writer, cut short by Ctrl-C, writes its end when it is destroyed, and where the file
    # is closed by then the process aborts. And so a full disk is the system's error, not the library's.
    content = io.BytesIO()
    torch.save(state, content)
    with open(path, "wb") as file:
        file.write(content.getbuffer())
    seal = _SEAL + sha256(path).encode()
    with open(path, "ab") as file:
        file.write(seal)


def _seal_holds(path: Path) -> bool:
    """Whether the file ends with the checksum of its preceding bytes."""
    length = path.stat().st_size - len(_SEAL) - 64
    if length < 0:
        return False
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while length and (chunk := file.read(min(length, 1 << 20))):
            digest.update(chunk)
            length -= len(chunk)
        return file.read() == _SEAL + digest.hexdigest().encode()


def read_json(path: Path, missing: str) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ValueError: There is no such file (says `missing`), or it is not a JSON object.
    """
    if not path.is_file():
        raise ValueError(f"{missing}: there is no file {path}")
    try:
        value = load_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value
