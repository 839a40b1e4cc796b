"""Pickles of labelled clouds, the cache that published code makes of ModelNet40's text files."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pointpeft.data.dataset import DataError
from pointpeft.data.formats.bounds import NUMBER_BYTES, require_unpacked
from pointpeft.data.formats.coordinates import CLI_WAY_OUT, coordinates, in_float32, keep_finite, require_in_range
from pointpeft.data.formats.numpy_pickle import load_arrays


def read_cache(
    path: Path, num_classes: int, *, as_is: bool = False, dropped: dict[str, int] | None = None
) -> tuple[list[Tensor], Tensor]:
    """The clouds and labels of a .dat file: a pickle of [clouds (n, 6) each, labels (1,) each].

    Args:
        path: The file.
        num_classes: Labels must be below this.
        as_is: Clouds in float64, so that they can be centred before they are rounded; else in float32.
        dropped: Receives how many points of which cloud are not finite and left out; None refuses them.

    Raises:
        DataError: It is broken, holds anything but that, or asks to run something.
    """
    content = load_arrays(path)
    if not isinstance(content, (list, tuple)) or len(content) != 2:
        raise DataError(f"{path}: must hold a list of clouds and a list of labels")
    clouds, labels = content
    if not isinstance(clouds, (list, tuple)) or not isinstance(labels, (list, tuple)):
        raise DataError(f"{path}: must hold a list of clouds and a list of labels")
    if len(clouds) != len(labels):
        raise DataError(f"{path}: {len(clouds)} clouds have {len(labels)} labels")
    points, unpacked = [], 0
    for i, cloud in enumerate(clouds):
        try:
            if not hasattr(cloud, "__array__"):  # lists that hold one another unfold to any size
                raise DataError(f"must be an array of numbers, got {type(cloud).__name__}")
            unpacked += np.asarray(cloud).size * NUMBER_BYTES  # any number of entries may be one array
            require_unpacked(path.stat().st_size, unpacked)
            drop = False if dropped is None else dropped
            finite, _ = keep_finite(coordinates(np.asarray(cloud), finite=False), drop, f"{path}[{i}]", CLI_WAY_OUT)
            require_in_range(finite)
            points.append(torch.from_numpy(finite) if as_is else in_float32(finite))
        except DataError as error:
            raise DataError(f"{path}: cloud {i}: {error}") from None
    if any(
        isinstance(label, (list, tuple)) and (len(label) != 1 or isinstance(label[0], (list, tuple)))
        for label in labels
    ):
        raise DataError(f"{path}: every label must be one whole number")
    numbers = [np.asarray(label) for label in labels]
    if any(number.dtype.kind not in "iu" or number.size != 1 for number in numbers):
        raise DataError(f"{path}: every label must be one whole number")
    values = torch.tensor([int(number.reshape(())) for number in numbers], dtype=torch.int64)
    if len(values) and not 0 <= int(values.min()) <= int(values.max()) < num_classes:
        raise DataError(f"{path}: labels must be 0 to {num_classes - 1}, got {values.min()} to {values.max()}")
    return points, values
