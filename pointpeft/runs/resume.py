"""Checks that a resumed run has the options, the data and the frozen weights that it was begun with."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pointpeft.data.loading import EMBEDDED
from pointpeft.data.sets.few_shot import PREFIX
from pointpeft.files import sha256, write_json
from pointpeft.tasks.base import GatheredClouds
from pointpeft.training.run_folder import RunFolder, read_json

Config = TypeVar("Config")
PRETRAIN_FREE = ("quiet", "device", "clouds_in", "workers", "track")
FINETUNE_FREE = (*PRETRAIN_FREE, "probe")


def revised(given: Config, parse: Callable[..., Any], command: str, free: Sequence[str]) -> Config:
    """The options of a command line with `--resume`, over those that the run was begun with.

    Args:
        given: As parsed with the usual defaults.
        parse: Parses the command line again with `default` in their place.
        command: What made the run.
        free: Names of the options that may be changed.

    Raises:
        ValueError: No such run, or an option that a resumed run cannot take up.
    """
    folder = RunFolder(given.resume, main=False)  # type: ignore[attr-defined]
    stored = folder.read_config(type(given), command)
    merged = parse(default=stored)
    _require_same(folder, stored, merged, [f.name for f in fields(merged) if f.name not in ("resume", *free)], free)
    return merged


def reopened(given: Config, command: str, free: Sequence[str]) -> tuple[Config, Path | None]:
    """A configuration and, where it asks to resume a run, that run's folder and own configuration.

    Args:
        given: A whole configuration, or one of defaults but for `resume` and what is to be changed.
        command: What made the run.
        free: Names of the options that may be changed.

    Raises:
        ValueError: There is no such run, or another option is changed; names it, and the way out.
    """
    path: Path | None = given.resume  # type: ignore[attr-defined]
    if path is None:
        return given, None
    folder = RunFolder(path, main=False)
    stored = folder.read_config(type(given), command)
    fixed = [field.name for field in fields(given) if field.name not in ("resume", "output", *free)]  # type: ignore[arg-type]
    defaults = type(given)()
    whole = all(_plain(given, name) == _plain(stored, name) for name in fixed)
    changed = [field.name for field in fields(given) if _plain(given, field.name) != _plain(defaults, field.name)]  # type: ignore[arg-type]
    _require_same(folder, stored, given, [name for name in changed if name in fixed], free)
    return replace(stored, **{name: getattr(given, name) for name in free if whole or name in changed}), path  # type: ignore[type-var]


def tell_finished(folder: RunFolder) -> None:
    """Says that a run has a result already."""
    if folder.main and (folder.path / "result.json").exists():
        print(
            f"{folder.path} is finished: nothing is left to train, its result is measured and written again. For more "
            "epochs begin a new run: the learning rate follows a cosine over all of them",
            file=sys.stderr,
        )


def _require_same(folder: RunFolder, stored: Any, given: Any, names: Sequence[str], free: Sequence[str]) -> None:
    different = [name for name in names if _plain(given, name) != _plain(stored, name)]
    if not different:
        return
    differences = "; ".join(
        f"{name} is {getattr(stored, name)!r} there and {getattr(given, name)!r} here" for name in different
    )
    raise ValueError(
        f"a resumed run keeps the options it was begun with, on which its result depends: of {folder.path}, "
        f"{differences}. Leave them out, or begin a new run without --resume; only {', '.join(free)} may change"
    )


def _plain(config: Any, name: str) -> Any:
    """An option as JSON gives it back; an empty text names nothing."""
    value = getattr(config, name)
    return list(value) if isinstance(value, tuple) else None if value in (None, "") else str(value)


INPUTS = "inputs.json"
_NOUNS = {"points": "clouds whose points"}
_VERDICTS = {"clouds": "have another label or number of points", "points": "are others"}


def clouds_fingerprint(clouds: GatheredClouds, source: str) -> dict[str, Any]:
    """Fingerprint of a run's clouds: classes, label and number of points of each cloud by name, and the source's files.

    Of clouds in memory there are checksums of their points, too, which then count instead of the times of files.
    """
    entries: dict[str, Any] = {}
    for number, (name, label, size) in enumerate(zip(clouds.names, clouds.labels.tolist(), clouds.sizes, strict=True)):
        key = name if name not in entries else f"{name} (cloud {number})"
        entries[key] = [int(label), size]
    fingerprint = {"classes": list(clouds.classes), "clouds": entries, "files": files_fingerprint(source, clouds.names)}
    if clouds.on_disk:
        return fingerprint
    checksums = [_checksum(clouds.content(number)) for number in range(len(clouds))]
    return fingerprint | {"points": dict(zip(entries, checksums, strict=True))}


def files_fingerprint(source: str, names: Iterable[str] = ()) -> dict[str, list[int]]:
    """Size and time of change, in nanoseconds, of the files of a data set, by their names; none of an embedded one.

    Args:
        source: As in `load_dataset`.
        names: Of clouds, which are files beside a list.
    """
    path = _path_of(source)
    if path is None:
        return {}
    if path.is_dir():
        files = [Path(place, name) for place, _, stamps in os.walk(path) for name in stamps if not name.startswith(".")]
        root = path
    else:
        root = path.parent
        files = [path, *(file for name in names if (file := root / name) != path and file.is_file())]
    stamps = {}
    for file in sorted(files):
        facts = file.stat()
        stamps[os.path.relpath(file, root)] = [facts.st_size, facts.st_mtime_ns]
    return stamps


def checkpoint_fingerprint(checkpoint: str | None) -> str | None:
    """SHA-256 of a file of pre-trained weights; None of shipped ones, which are named by the configuration."""
    return sha256(checkpoint) if checkpoint is not None and Path(checkpoint).is_file() else None


def weights_fingerprint(weights: Mapping[str, Tensor], text: str = "") -> str:
    """SHA-256 of tensors, their names and a text."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def frozen_fingerprint(model: nn.Module) -> str:
    """SHA-256 of the parameters that training leaves as they are."""
    return weights_fingerprint({name: p for name, p in model.named_parameters() if not p.requires_grad})


def require_unchanged(folder: RunFolder, what: str, now: Any, way_out: str) -> None:
    """Compares an input of a run with what the folder remembers of it, or remembers it.

    Args:
        folder: The run's.
        what: The input, such as "train".
        now: Its fingerprint.
        way_out: What a person can do, for the message.

    Raises:
        ValueError: The input has changed; names what of it.
    """
    path = folder.path / INPUTS
    before = read_json(path, "") if path.is_file() else {}
    now = json.loads(json.dumps(now))
    if what in before:
        differences = _differences(before[what], now)
        if differences:
            raise ValueError(f"the {what} of the run in {folder.path} changed: {'; '.join(differences)}. {way_out}")
    elif folder.main:
        if (folder.path / "checkpoint.pt").exists():
            print(f"{folder.path} does not tell what its {what} was: it is taken for unchanged", file=sys.stderr)
        write_json(path, before | {what: now})


def _differences(before: Any, now: Any) -> list[str]:
    """The differences between two fingerprints, in words."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return [] if before == now else ["it is another one"]
    left_out = ("files",) if "points" in before and "points" in now else ("points",)
    differences = []
    for entry in dict.fromkeys([*before, *now]):
        if entry in left_out:
            continue
        old, new = before.get(entry), now.get(entry)
        if isinstance(old, dict) and isinstance(new, dict):
            differences += _changed_entries(entry, old, new)
        elif old != new:
            differences.append(f"{entry} were {_shown(old)}, and are {_shown(new)}")
    return differences


def _changed_entries(what: str, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    verdicts = {
        "were added": [name for name in new if name not in old],
        "are gone": [name for name in old if name not in new],
        _VERDICTS.get(what, "changed"): [name for name in new if name in old and old[name] != new[name]],
    }
    changes = [
        f"{len(names)} {_NOUNS.get(what, what)} {verdict}, such as {names[0]}"
        for verdict, names in verdicts.items()
        if names
    ]
    if not changes and list(old) != list(new):
        changes = [f"the {what} are in another order"]
    return changes


def _shown(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _checksum(tensors: Sequence[Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> Any:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else b""


def _path_of(source: str) -> Path | None:
    """The file or folder that a source names, between its prefix and its variant; None of an embedded one."""
    if source == EMBEDDED:
        return None
    text = source.removeprefix(f"{PREFIX}:") if source.startswith(f"{PREFIX}:") else source
    while text:
        for start in (text, text.partition(":")[2]):
            if start and (path := Path(start).expanduser()).exists():
                return path
        text = text.rpartition(":")[0]
    return None
