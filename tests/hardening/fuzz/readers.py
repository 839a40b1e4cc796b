"""Fuzzes every reader with damaged files: `python -m tests.hardening.fuzz.readers --seconds 120 --seed 0`.

A case damages one valid file. Reading it ends either in valid content (of a cloud: finite float32 rows of three) or in
the documented error, which names the file; anything else, a crash or a hang of a library included, is a failure.
"""

import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pointpeft.checkpoints.adapter import read_config
from pointpeft.checkpoints.convert import read_model_section
from pointpeft.data import DataError, load_dataset, read_points
from pointpeft.data.formats.hdf5 import read_h5
from pointpeft.data.sets import part_files, s3dis, shapenetpart
from pointpeft.data.sets.modelnet40 import read_cache
from pointpeft.files import read_weights
from pointpeft.training.run_folder import RunFolder
from tests.hardening.fuzz.draw import Draw
from tests.hardening.fuzz.driver import main
from tests.hardening.fuzz.files import damage, valid_files

torch.set_num_threads(1)
LEAST_MEMORY = 3 << 30  # of address space beyond the start; more is a flood
NUM_CLASSES = 40
SPLITS = ("train", "test")


@cache
def originals() -> tuple[tempfile.TemporaryDirectory, dict[str, Path], dict[str, bytes]]:
    """The valid files and their content; the folder lives as long as the process."""
    # Damaged files make libraries warn about what they then refuse.
    warnings.simplefilter("ignore")
    folder = tempfile.TemporaryDirectory()
    files = valid_files(Path(folder.name))
    return folder, files, {name: path.read_bytes() for name, path in files.items()}


def home(name: str, path: Path) -> Path:
    """The folder that holds what belongs to a file."""
    return path.parents[name.count("/")]


# ---- what reads which file: each gives clouds, or raises AssertionError where its content is wrong ----


def every(dataset: Any) -> list[torch.Tensor]:
    return [dataset[i][0] for i in range(len(dataset))]


def segmented(dataset: Any) -> list[torch.Tensor]:
    """The clouds of a data set whose points are labelled."""
    items = [dataset[i] for i in range(len(dataset))]
    for points, *_, parts in items:
        if parts.dtype != torch.int64 or parts.shape != points.shape[:1] or int(parts.min()) < 0:
            raise AssertionError(f"no valid labels: {parts.dtype} {tuple(parts.shape)}")
    return [item[0] for item in items]


def labelled(path: Path) -> list[torch.Tensor]:
    """Clouds with labelled points; those left on disk are the same."""

    def clouds(lazy: bool) -> list[torch.Tensor]:
        return [cloud for split in SPLITS for cloud in segmented(part_files.load(path, split, lazy=lazy))]

    try:
        left: list[torch.Tensor] | DataError = clouds(lazy=True)
    except DataError as error:
        left = error
    found = clouds(lazy=False)
    if isinstance(left, DataError):
        raise AssertionError(f"read whole, but not cloud by cloud: {left}")
    if len(left) != len(found) or not all(map(torch.equal, left, found)):
        raise AssertionError("other clouds when they are read one by one")
    return found


def weights(path: Path) -> list[torch.Tensor]:
    tensors, _ = read_weights(path)
    if not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise AssertionError(f"not tensors: {tensors}")
    return []


def settings(read: Callable[[Path], Any], path: Path) -> list[torch.Tensor]:
    if not isinstance(read(path), dict):
        raise AssertionError("not a dict")
    return []


# Beginning of a name -> what reads the file, from its folder and its path; else its suffix decides.
BY_NAME: dict[str, Callable[[Path, Path], list[torch.Tensor]]] = {
    "few_shot/": lambda root, path: [
        cloud for split in SPLITS for cloud in every(load_dataset(f"few_shot:{root / 'few_shot'}:2way2shot:0", split))
    ],
    "parts/": lambda root, path: labelled(path),
    "rooms/": lambda root, path: segmented(s3dis.load(path.parent, "test")),
    "shapenetpart/": lambda root, path: segmented(shapenetpart.load(root / "shapenetpart", "train")),
    "adapter/": lambda root, path: settings(read_config, path.parent),
    "run/": lambda root, path: settings(lambda p: RunFolder(p.parent).load_checkpoint(torch.device("cpu")), path),
}
BY_SUFFIX: dict[str, Callable[[Path], list[torch.Tensor]]] = {
    ".h5": lambda path: list(read_h5(path, NUM_CLASSES)[0]),
    ".dat": lambda path: read_cache(path, NUM_CLASSES)[0],
    ".csv": lambda path: [cloud for split in SPLITS for cloud in every(load_dataset(path, split))],
    ".pth": weights,
    ".safetensors": weights,
    ".yaml": lambda path: settings(read_model_section, path),
}
CHECKPOINTS = ("adapter/", "run/", ".pth", ".safetensors", ".yaml")  # their errors are no DataError


def read(name: str, path: Path) -> list[torch.Tensor]:
    """The clouds of a file, by the reader that its kind has."""
    for start, reader in BY_NAME.items():
        if name.startswith(start):
            return reader(home(name, path), path)
    return BY_SUFFIX.get(path.suffix.lower(), lambda path: [read_points(path)])(path)


def one(seed: int, number: int) -> tuple[str, str]:
    """Runs a case; gives the kind of file and how it ended."""
    _, files, contents = originals()
    draw = Draw("readers", seed, number)
    name = draw.choice(sorted(files))
    content = damage(contents[name], draw, list(contents.values()))
    try:
        files[name].write_bytes(content)
        return name, verdict(name, files[name])
    except Exception as error:
        error.group = name
        raise


def verdict(name: str, path: Path) -> str:
    """Reads a file and looks at what comes out."""
    documented = ValueError if name.startswith(CHECKPOINTS) or name.endswith(CHECKPOINTS) else DataError
    try:
        clouds = read(name, path)
    except ValueError as error:
        if type(error) is not documented:
            raise AssertionError(f"{type(error).__name__}: {error}") from error
        root = str(home(name, path))
        if root not in str(error) and path.name not in str(error):
            raise AssertionError(f"the error does not name the file: {error}") from error
        if not str(error).replace(str(path), "").replace(root, "").strip(": "):
            raise AssertionError(f"the error gives no reason: {error}") from error
        return "refused"
    for points in clouds:
        good = points.dtype == torch.float32 and points.dim() == 2 and points.shape[1] == 3 and len(points)
        if not good or not torch.isfinite(points).all():
            raise AssertionError(f"no valid cloud: {points.dtype} {tuple(points.shape)}")
    return "read"


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main("tests.hardening.fuzz.readers", (sys.modules[__name__].__doc__ or "").splitlines()[0], one, LEAST_MEMORY, 30.0)
