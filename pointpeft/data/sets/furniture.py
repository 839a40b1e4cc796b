"""The furniture clouds that the package contains: real shapes for first experiments, without a download."""

from pathlib import Path

import h5py
import torch

from pointpeft.data.dataset import PointCloudDataset, at_most, require_axis
from pointpeft.data.registry import EMBEDDED, DataSet, DataSource, LoadOptions, register_data_set

PATH = Path(__file__).parents[1] / "embedded" / "furniture.h5"


@register_data_set
class Furniture(DataSet):
    """The embedded clouds, by their name alone."""

    name = EMBEDDED
    title = "embedded furniture"
    layout = EMBEDDED
    up_axis = "y"
    place_is = "nothing"

    def matches(self, path: Path) -> bool:
        """No path."""
        return False

    def load(self, source: DataSource, split: str, options: LoadOptions) -> PointCloudDataset:
        """See the function `load`."""
        whole = load(split)
        return PointCloudDataset(
            [at_most(whole[i][0], options.num_points) for i in range(len(whole))],
            whole.labels,
            whole.classes,
            whole.names,
            up_axis=require_axis(options.up_axis or whole.up_axis),
            normalized=whole.normalized,
            notes=whole.notes,
        )

    def can_read_lazily(self, source: DataSource) -> bool:
        """They are small and always in memory."""
        return False

    def can_drop_non_finite(self, source: DataSource) -> bool:
        """They are finite."""
        return False


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
