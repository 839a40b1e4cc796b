"""Predictions for any number of clouds: constant memory, one JSON line a cloud, and no cloud twice after a stop."""

import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from pointpeft.data import DataError
from pointpeft.data.sets.folder import cloud_files
from pointpeft.data.stream import Source, is_many, stream
from pointpeft.files import write_atomically
from pointpeft.locks import Lock
from pointpeft.progress import make_bar
from pointpeft.runs.resume import weights_fingerprint
from pointpeft.tasks.adapted import Adapted
from pointpeft.tasks.batches import fit

FILES_PER_UNIT = 1024  # of work for one machine of a cluster


COUNTS = ("clouds", "errors", "clouds_now")


@dataclass(frozen=True)
class StreamResult:
    """Result of a stream of predictions.

    Attributes:
        clouds: Lines of the whole file.
        errors: Lines of the whole file that say why there is no answer.
        clouds_now: Lines that this call wrote.
        seconds, clouds_per_second: Of this call.
        output: The file.
        processes: How many shared the work at most; None without a cluster.
    """

    clouds: int
    errors: int
    clouds_now: int
    seconds: float
    clouds_per_second: float
    output: Path
    processes: int | None = None


def model_fingerprint(adapted: Adapted) -> str:
    """SHA-256 of all that an answer depends on beside the cloud: weights, classes, how clouds are prepared."""
    facts = (adapted.classes, adapted.num_points, adapted.normalized, dict(adapted.model.config))
    return weights_fingerprint(adapted.model.state_dict(), json.dumps(facts, sort_keys=True, default=str))


def sources_of(
    paths: list[Path], normalized: bool, dropped: dict[str, int] | bool = False
) -> Iterator[tuple[Path, Source]]:
    """The clouds of `stream`, each with the file that it lies in.

    Raises:
        DataError: As `stream`.
    """
    for path in paths:
        files = cloud_files(path) if path.is_dir() else []
        for file in files or [path]:
            for source in stream([file], normalized, dropped):
                yield file, source


def origin_of(output: Path) -> Path:
    """The file beside a file of predictions."""
    return output.with_name(f"{output.stem}.origin.jsonl")


class Origin:
    """A line for the model, then one for each file that clouds were read from, in their order: size and time of change.

    A file's line is written before those of its clouds, so that a stop between leaves too many of them at worst.

    Args:
        output: The file of predictions.
        model: The model's fingerprint.
        resumed: Whether the output has lines already.

    Raises:
        ValueError: The lines were made by another model, or nothing says by which.
    """

    def __init__(self, output: Path, model: str, resumed: bool) -> None:
        self.output, self.path = output, origin_of(output)
        self.way_out = f"remove {output} to predict anew, or give another --output"
        self._last: Path | None = None
        if resumed and not self.path.exists():
            raise ValueError(f"{output} has lines, but no {self.path.name} says what made them; {self.way_out}")
        self._file: BinaryIO = open(self.path, "r+b" if resumed else "w+b")  # closed by `close`
        if not resumed:
            self._write({"model": model})
            return
        try:
            if self._read().get("model") != model:
                raise ValueError(
                    f"{output} holds the answers of another adapter, or of this one before it was trained again; "
                    f"{self.way_out}"
                )
        except ValueError:
            self.close()
            raise

    def require_same(self, file: Path) -> None:
        """Compares the file of a cloud that has a line with what it was.

        Raises:
            ValueError: It is another one.
        """
        if file != self._last:
            self._last = file
            if self._read() != _facts(file):
                raise ValueError(
                    f"{file} changed since {self.output} was written, which holds the answer for what it was; "
                    f"{self.way_out}"
                )

    def continue_here(self) -> None:
        """Forgets the files behind those compared: their clouds have no lines."""
        self._file.truncate(self._file.tell())

    def add(self, file: Path) -> None:
        """Writes the line of a file whose clouds are about to be read."""
        if file != self._last:
            self._last = file
            self._write(_facts(file))

    def close(self) -> None:
        """Makes the lines durable."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _write(self, facts: dict[str, Any]) -> None:
        self._file.write(json.dumps(facts).encode() + b"\n")
        self._file.flush()

    def _read(self) -> dict[str, Any]:
        try:
            facts = json.loads(self._file.readline())
        except ValueError:
            facts = None
        if not isinstance(facts, dict):
            raise ValueError(f"{self.path} does not say what the lines of {self.output} were made from; {self.way_out}")
        return facts


def _facts(file: Path) -> dict[str, Any]:
    try:
        status = file.stat()
    except OSError as error:  # its cloud's line is an error, too
        return {"file": str(file), "error": error.strerror}
    return {"file": str(file), "size": status.st_size, "changed": status.st_mtime_ns}


def joined_origin(pieces: list[Path]) -> bytes:
    """The origin of the parts' lines put together, each of which begins with the line of the same model."""
    lines = [origin_of(piece).read_bytes().splitlines(keepends=True) for piece in pieces]
    return b"".join([lines[0][0], *(line for each in lines for line in each[1:])])


def predict_stream(
    adapted: Adapted,
    paths: list[Path],
    output: Path,
    batch_size: int = 32,
    title: str | None = None,
    *,
    drop_non_finite: bool = False,
) -> StreamResult:
    """Classifies the clouds of files, folders and shards.

    Each cloud gives a line in `output`: {"cloud", "class", "probability"} or {"cloud", "error"}, in the order of the
    stream. Where the file is there already, its lines are kept and the work goes on behind them, if they were made by
    the same model from the same clouds: what they were made from is kept beside them, see `Origin`.

    Args:
        adapted: The model.
        paths: Files, folders, tar and HDF5 shards.
        output: The .jsonl file.
        batch_size: Clouds per step.
        title: Of a progress bar, or None for none.
        drop_non_finite: Leave points out that are not finite; the line of their cloud says how many: "left_out".

    Returns:
        How many clouds were predicted, and how fast.

    Raises:
        InUseError: Another process is writing `output`.
        ValueError: The lines of `output` are of another model, or of other clouds than the stream begins with.
        DataError: A shard or a folder that cannot be read.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    output.parent.mkdir(parents=True, exist_ok=True)
    lock = Lock(output.with_name(f".{output.name}.lock"), str(output), "give another --output")
    try:
        return _predict_locked(adapted, paths, output, batch_size, title, drop_non_finite)
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, f"cannot be written, {error.strerror}", str(output)) from error
    finally:
        lock.release()


def _predict_locked(
    adapted: Adapted, paths: list[Path], output: Path, batch_size: int, title: str | None, drop_non_finite: bool
) -> StreamResult:
    done, errors = _kept_lines(output)
    dropped: dict[str, int] = {}
    sources = sources_of(paths, adapted.normalized, dropped if drop_non_finite else False)
    model = model_fingerprint(adapted) + (" of finite points" if drop_non_finite else "")
    started, now = time.perf_counter(), 0
    with (
        closing(Origin(output, model, done > 0)) as origin,
        open(output, "a", encoding="utf-8") as file,
        make_bar(title=title, unit="cloud") as bar,
    ):
        _pass_over(sources, output, done, origin)
        for batch in _batches(adapted, sources, batch_size, origin):
            lines = _answers(adapted, batch)
            for line in lines:
                if left_out := dropped.pop(line["cloud"], 0):
                    line["left_out"] = left_out
            file.writelines(json.dumps(line) + "\n" for line in lines)
            file.flush()
            now += len(lines)
            errors += sum("error" in line for line in lines)
            bar.update(len(lines))
        os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    return StreamResult(done + now, errors, now, round(seconds, 1), round(now / max(seconds, 1e-9), 1), output)


def units(paths: list[Path]) -> list[list[Path]]:
    """Divides files, folders and shards into units of work, in order: one shard each, or up to 1024 other files."""
    work: list[list[Path]] = []
    loose: list[Path] = []
    for path in paths:
        if path.is_dir() or not is_many(path):
            loose += cloud_files(path) if path.is_dir() else [path]
            continue
        work += [loose[i : i + FILES_PER_UNIT] for i in range(0, len(loose), FILES_PER_UNIT)] + [[path]]
        loose = []
    return work + [loose[i : i + FILES_PER_UNIT] for i in range(0, len(loose), FILES_PER_UNIT)]


def join_parts(pieces: list[Path], output: Path, counts: list[dict[str, Any]], seconds: float) -> StreamResult:
    """Puts the lines of parts together in order, removes them, and adds up the counts of each."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            for piece in pieces:
                with open(piece, "rb") as lines:
                    shutil.copyfileobj(lines, file)

    write_atomically(origin_of(output), lambda temporary: temporary.write_bytes(joined_origin(pieces)))
    write_atomically(output, write)
    for piece in pieces:
        piece.unlink()
        origin_of(piece).unlink()
    pieces[0].parent.rmdir()
    clouds, errors, now = (sum(each[name] for each in counts) for name in COUNTS)
    return StreamResult(clouds, errors, now, round(seconds, 1), round(now / max(seconds, 1e-9), 1), output)


def _pass_over(sources: Iterator[tuple[Path, Source]], output: Path, done: int, origin: Origin) -> None:
    """Takes the clouds that have a line out of the stream, and compares them with those that the lines are of."""
    with open(output, "rb") as lines:
        for line in itertools.islice(lines, done):
            expected, (path, source) = json.loads(line)["cloud"], next(sources, (None, None))
            if path is None or source is None or source.name != expected:
                name = None if source is None else source.name
                raise ValueError(
                    f"{output} has a line of {expected}, but the clouds given now have {name} in that place; give the "
                    "same clouds, or another --output"
                )
            origin.require_same(path)
    origin.continue_here()


def _kept_lines(output: Path) -> tuple[int, int]:
    """How many whole lines a file has, and how many are errors; cuts off a line that was not finished."""
    if not output.exists():
        return 0, 0
    count, errors, end = 0, 0, 0
    with open(output, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                facts = json.loads(line)
                has_error = "error" in facts
                facts["cloud"]
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{output}, line {number}: is no prediction; give another --output") from None
            count, errors, end = count + 1, errors + has_error, end + len(line)
    os.truncate(output, end)
    return count, errors


def _batches(
    adapted: Adapted, sources: Iterator[tuple[Path, Source]], batch_size: int, origin: Origin
) -> Iterator[list[tuple[str, Tensor | DataError]]]:
    group_size = adapted.model.backbone.config.group_size
    batch: list[tuple[str, Tensor | DataError]] = []
    for path, source in sources:
        origin.add(path)
        try:
            points = source.read()
            if len(points) < group_size:
                raise DataError(f"{source.name}: {len(points)} points, at least group_size = {group_size} are needed")
            batch.append((source.name, fit(points, adapted.num_points)))
        except (DataError, OSError) as error:
            batch.append((source.name, DataError(str(error))))
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


@torch.inference_mode()
def _answers(adapted: Adapted, batch: list[tuple[str, Tensor | DataError]]) -> list[dict[str, Any]]:
    clouds = [points for _, points in batch if isinstance(points, Tensor)]
    answers: Iterator[tuple[float, int, bool]] = iter(())
    if clouds:
        logits = adapted.model(torch.stack(clouds).to(adapted.device)).float()
        best = logits.softmax(1).max(1)
        finite = logits.isfinite().all(1)
        answers = zip(best.values.tolist(), best.indices.tolist(), finite.tolist(), strict=True)
    lines = []
    for name, points in batch:
        if isinstance(points, Tensor):
            probability, index, finite = next(answers)
            if not finite:
                lines.append({"cloud": name, "error": f"{name}: the model's logits are not finite"})
                continue
            lines.append({"cloud": name, "class": adapted.classes[index], "probability": round(probability, 4)})
        else:
            lines.append({"cloud": name, "error": str(points)})
    return lines
