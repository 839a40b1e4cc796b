"""Whether the clouds of a run are kept in memory or read from disk."""

import math
import os
import sys
from typing import Literal

from pointpeft.data import PointCloudDataset
from pointpeft.data.registry import parse_source
from pointpeft.tasks.base import AnyTask
from pointpeft.tasks.batches import SPARE
from pointpeft.training.memory import free_memory
from pointpeft.training.processes import rank_and_world

CloudsIn = Literal["auto", "memory", "disk"]
_POINT = 12  # bytes
_MAX_SHARE = 0.5  # of the free memory


def should_read_lazily(
    source: str, clouds_in: CloudsIn, num_points: int, splits: tuple[str, ...], task: AnyTask
) -> bool:
    """Whether clouds stay on disk: as `clouds_in` says, or for `auto` where they need too much memory; that is printed.

    Args:
        source: The data set; it is listed, not read.
        clouds_in: As a command's option.
        num_points: N, points per cloud that the model sees.
        splits: Those that are read.
        task: What the clouds are for.

    Raises:
        ValueError: Clouds on disk for a task that needs them in memory.
    """
    if not task.can_read_lazily:
        if clouds_in == "disk":
            raise ValueError(f"clouds_in must be auto or memory for {task.name}, which keeps its points in memory")
        return False
    if clouds_in != "auto":
        return clouds_in == "disk"
    if not task.can_read_source_lazily(source):
        return False
    count, needed = 0, 0
    for split in splits:
        dataset = task.load(source, split, None, lazy=True)
        count += len(dataset)
        needed += task.bytes_in_memory(dataset, num_points)
    free = free_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # every process of this machine takes its share
    if needed <= _MAX_SHARE * free:
        return False
    if rank_and_world()[0] == 0:
        print(
            f"{count:,} clouds would take {needed / 2**30:.1f} GiB of {free / 2**30:.1f} GiB free memory: they stay on "
            "disk and are read as they are needed (--clouds-in memory would keep them; for training, --workers 2 reads "
            "ahead)",
            file=sys.stderr,
        )
    return True


def can_read_source_lazily(source: str) -> bool:
    """Whether the form of a data set allows its clouds to be read one by one."""
    return parse_source(source).can_read_lazily()


def bytes_in_memory(dataset: PointCloudDataset, num_points: int) -> int:
    """How much its clouds take in memory while they are read and cut: at most, where their sizes are not known."""
    spare = math.ceil(SPARE * num_points)
    if dataset.sizes is None:
        return _POINT * spare * len(dataset)
    # Files of many clouds are read whole before their clouds are cut.
    return _POINT * sum(size + min(size, spare) for size in dataset.sizes)
