"""The furniture clouds that travel with the package: real shapes to try things on, without a download."""

from pathlib import Path

import h5py
import torch

from pointpeft.data.dataset import PointCloudDataset

PATH = Path(__file__).parents[1] / "embedded" / "furniture.h5"


def load(split: str = "train") -> PointCloudDataset:
    """Loads everyday objects, from beds to vehicles, 1024 points each, centred and scaled to the unit sphere, y up.

    Variants of one model lie in the same split. Authors and licences stand in `embedded/CREDITS`.

    Args:
        split: "train" or "test".

    Returns:
        The clouds, in memory.

    Raises:
        ValueError: The split is none of the two.
    """
    if split not in ("train", "test"):
        raise ValueError(f'split must be "train" or "test", got {split!r}')
    with h5py.File(PATH) as file:
        chosen = file["test"][()] == (split == "test")
        points = torch.from_numpy(file["points"][()][chosen]).to(torch.float32) / float(file["points"].attrs["scale"])
        labels = torch.from_numpy(file["label"][()][chosen])
        names = list(file["item"].asstr()[()][chosen])
        up_axis = str(file["points"].attrs["up_axis"])
        classes = list(file["classes"].asstr()[()])
    return PointCloudDataset(points, labels, classes, names, up_axis=up_axis, normalized=True)
