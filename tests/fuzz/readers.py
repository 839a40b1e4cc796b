"""Fuzzes every reader with damaged files: `python -m tests.fuzz.readers --seconds 120 --seed 0`.

A case damages one valid file. Reading it ends either in a valid cloud (finite float32 rows of three) or in the
documented error, which names the file; anything else, a crash or a hang of a library included, is a failure.
"""

import os
import sys
import tempfile
import warnings
from functools import cache
from pathlib import Path

import torch

from pointpeft.checkpoints.files import read_weights
from pointpeft.data import DataError, load_dataset, read_points
from pointpeft.data.hdf5 import read_h5
from pointpeft.data.modelnet40 import read_cache
from tests.fuzz.draw import Draw
from tests.fuzz.driver import main
from tests.fuzz.files import damage, valid_files

torch.set_num_threads(1)
LEAST_MEMORY = 3 << 30  # of address space beyond the start; more is a flood
NUM_CLASSES = 40


@cache
def originals() -> tuple[tempfile.TemporaryDirectory, dict[str, Path], dict[str, bytes]]:
    """The valid files and their content; the folder lives as long as the process."""
    # Damaged files make libraries warn about what they then refuse.
    warnings.simplefilter("ignore")
    folder = tempfile.TemporaryDirectory()
    files = valid_files(Path(folder.name))
    return folder, files, {name: path.read_bytes() for name, path in files.items()}


def read(path: Path) -> list[torch.Tensor]:
    """The clouds of a file, by the reader that its kind has."""
    kind = path.suffix.lower()
    if kind == ".h5":
        return list(read_h5(path, NUM_CLASSES)[0])
    if kind == ".dat":
        return read_cache(path, NUM_CLASSES)[0]
    if kind == ".csv":
        clouds = []
        for split in ("train", "test"):
            dataset = load_dataset(path, split)
            clouds += [dataset[i][0] for i in range(len(dataset))]
        return clouds
    return [read_points(path)]


def one(seed: int, number: int) -> tuple[str, str]:
    """Runs a case; gives the kind of file and how it ended."""
    _, files, contents = originals()
    draw = Draw("readers", seed, number)
    name = draw.choice(sorted(files))
    path = files[name]
    content = damage(contents[name], draw, list(contents.values()))
    try:
        path.write_bytes(content)
        return name, verdict(path)
    except Exception as error:
        error.group = name
        raise
    finally:
        path.write_bytes(contents[name])


def verdict(path: Path) -> str:
    """Reads a file and looks at what comes out."""
    weights = path.suffix in (".pth", ".safetensors")
    documented = ValueError if weights else DataError
    try:
        if weights:
            tensors, _ = read_weights(path)
            if not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
                raise AssertionError(f"not tensors: {tensors}")
            return "read"
        clouds = read(path)
    except ValueError as error:
        if type(error) is not documented:
            raise AssertionError(f"{type(error).__name__}: {error}") from error
        text = str(error)
        if str(path) not in text and str(path.parent) not in text:
            raise AssertionError(f"the error does not name the file: {text}") from error
        if not text.split(str(path.parent))[-1].strip(": "):
            raise AssertionError(f"the error gives no reason: {text}") from error
        return "refused"
    for points in clouds:
        good = points.dtype == torch.float32 and points.dim() == 2 and points.shape[1] == 3 and len(points)
        if not good or not torch.isfinite(points).all():
            raise AssertionError(f"no valid cloud: {points.dtype} {tuple(points.shape)}")
    return "read"


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main("tests.fuzz.readers", (sys.modules[__name__].__doc__ or "").splitlines()[0], one, LEAST_MEMORY, 30.0)
