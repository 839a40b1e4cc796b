"""Predictions for any number of clouds: constant memory, one JSON line a cloud, and no cloud twice after a stop."""

import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pointpeft.data import DataError
from pointpeft.data.sets.folder import cloud_files
from pointpeft.data.stream import Source, is_many, stream
from pointpeft.files import write_atomically
from pointpeft.progress import make_bar
from pointpeft.runs.evaluate import Adapted
from pointpeft.tasks.batches import fit

BLOCK = 1024  # files of one piece of work where several machines share it


def predict_stream(
    adapted: Adapted,
    paths: list[Path],
    output: Path,
    batch_size: int = 32,
    title: str | None = None,
    *,
    drop_non_finite: bool = False,
) -> dict[str, Any]:
    """Classifies the clouds of files, folders and shards.

    Each cloud gives a line in `output`: {"cloud", "class", "probability"} or {"cloud", "error"}, in the order of the
    stream. Where the file is there already, its lines are kept and the work goes on behind them.

    Args:
        adapted: The model.
        paths: Files, folders, tar and HDF5 shards.
        output: The .jsonl file.
        batch_size: Clouds per step.
        title: Of a progress bar, or None for none.
        drop_non_finite: Leave points out that are not finite; the line of their cloud says how many: "left out".

    Returns:
        "clouds" and "errors" in the whole file, "clouds now", "seconds", "clouds per second" of this call, "output".

    Raises:
        ValueError: The lines of `output` are of other clouds than the stream begins with.
        DataError: A shard or a folder that cannot be read.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    output.parent.mkdir(parents=True, exist_ok=True)
    done, errors, last = _kept_lines(output)
    dropped: dict[str, int] = {}
    sources = stream(paths, adapted.normalized, dropped if drop_non_finite else False)
    position = None
    for source in itertools.islice(sources, done):
        position = source.name
    if position != last:
        raise ValueError(
            f"{output} ends with {last}, but the clouds given now have {position} in that place; "
            "give the same clouds, or another --output"
        )
    started, now = time.perf_counter(), 0
    with open(output, "a", encoding="utf-8") as file, make_bar(title=title, unit="cloud") as bar:
        for batch in _batches(adapted, sources, batch_size):
            lines = _answers(adapted, batch)
            for line in lines:
                if lost := dropped.pop(line["cloud"], 0):
                    line["left out"] = lost
            file.writelines(json.dumps(line) + "\n" for line in lines)
            file.flush()
            now += len(lines)
            errors += sum("error" in line for line in lines)
            bar.update(len(lines))
        os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    return {
        "clouds": done + now,
        "errors": errors,
        "clouds now": now,
        "seconds": round(seconds, 1),
        "clouds per second": round(now / max(seconds, 1e-9), 1),
        "output": str(output),
    }


def units(paths: list[Path]) -> list[list[Path]]:
    """Files, folders and shards in pieces of work, in order: a shard each, other files in blocks."""
    work: list[list[Path]] = []
    loose: list[Path] = []
    for path in paths:
        if path.is_dir() or not is_many(path):
            loose += cloud_files(path) if path.is_dir() else [path]
            continue
        work += [loose[i : i + BLOCK] for i in range(0, len(loose), BLOCK)] + [[path]]
        loose = []
    return work + [loose[i : i + BLOCK] for i in range(0, len(loose), BLOCK)]


def join_parts(parts: list[Path], output: Path, facts: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Puts the lines of parts together in order, removes them, and adds up what `predict_stream` said of each."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            for part in parts:
                with open(part, "rb") as lines:
                    shutil.copyfileobj(lines, file)

    write_atomically(output, write)
    for part in parts:
        part.unlink()
    parts[0].parent.rmdir()
    total = {name: sum(each[name] for each in facts) for name in ("clouds", "errors", "clouds now")}
    speed = {"seconds": round(seconds, 1), "clouds per second": round(total["clouds now"] / max(seconds, 1e-9), 1)}
    return {**total, **speed, "output": str(output)}


def _kept_lines(output: Path) -> tuple[int, int, str | None]:
    """How many whole lines a file has, how many are errors, the last cloud; cuts off a line that was not finished."""
    if not output.exists():
        return 0, 0, None
    count, errors, last, end = 0, 0, None, 0
    with open(output, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                facts = json.loads(line)
                last = facts["cloud"]
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{output}, line {number}: is no prediction; give another --output") from None
            count, errors, end = count + 1, errors + ("error" in facts), end + len(line)
    os.truncate(output, end)
    return count, errors, last


def _batches(
    adapted: Adapted, sources: Iterator[Source], batch_size: int
) -> Iterator[list[tuple[str, Tensor | DataError]]]:
    group_size = adapted.model.backbone.config.group_size
    batch: list[tuple[str, Tensor | DataError]] = []
    for source in sources:
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
    answers: Iterator[tuple[float, int]] = iter(())
    if clouds:
        best = adapted.model(torch.stack(clouds).to(adapted.device)).float().softmax(1).max(1)
        answers = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    lines = []
    for name, points in batch:
        if isinstance(points, Tensor):
            sure, index = next(answers)
            lines.append({"cloud": name, "class": adapted.classes[index], "probability": round(sure, 4)})
        else:
            lines.append({"cloud": name, "error": str(points)})
    return lines
