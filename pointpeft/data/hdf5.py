"""HDF5 files of many labelled clouds: `data` [M, N, 3 or more] and `label` [M] or [M, 1]."""

from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from pointpeft.data.bounds import require_h5
from pointpeft.data.dataset import DataError
from pointpeft.data.readers import in_float32


def read_h5(path: Path, num_classes: int) -> tuple[Tensor, Tensor, list[str]]:
    """Reads one file.

    Args:
        path: The file.
        num_classes: Labels must be below this.

    Returns:
        Points float32 [M, N, 3]; labels int64 [M]; names, those of `name` where the file has them, else file and row.

    Raises:
        DataError: The file is missing, broken, or its content is not as above; names the file and the reason.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        with h5py.File(path, "r") as file:
            require_h5(path, file)
            missing = [key for key in ("data", "label") if not isinstance(file.get(key), h5py.Dataset)]
            if missing:
                raise DataError(f"has no {' and no '.join(missing)}, only {', '.join(file) or 'nothing'}")
            data, label = file["data"], file["label"]
            if data.ndim != 3 or data.shape[2] < 3 or not data.shape[1] or data.dtype.kind not in "fiu":
                raise DataError(f"data must be numbers [M, N, 3], got {data.dtype} {list(data.shape)}")
            if label.dtype.kind not in "iu" and not _whole(label):
                raise DataError(f"label must be whole numbers, got {label.dtype}")
            labels = label[()].reshape(-1).astype(np.int64)
            points = data[:, :, :3].astype(np.float32)
            names = file["name"].asstr()[()].reshape(-1).tolist() if "name" in file else None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # whatever the library makes of a broken file, the user needs its name
        raise DataError(f"{path}: cannot be read: {error or type(error).__name__}") from error
    if len(labels) != len(points):
        raise DataError(f"{path}: {len(points)} clouds have {len(labels)} labels")
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise DataError(f"{path}: labels must be 0 to {num_classes - 1}, got {labels.min()} to {labels.max()}")
    wrong = np.flatnonzero(~np.isfinite(points).all((1, 2)))
    if len(wrong):
        raise DataError(f"{path}: {len(wrong)} clouds have points that are not finite, the first is cloud {wrong[0]}")
    try:
        tensor = in_float32(points)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    if names is None or len(names) != len(labels):
        names = [f"{path.name}[{i}]" for i in range(len(labels))]
    return tensor, torch.from_numpy(labels), names


def _whole(label: h5py.Dataset) -> bool:
    return label.dtype.kind == "f" and bool((label[()] == np.floor(label[()])).all())
