"""Installed libraries that do the same work, for rows beside ours: `pip install .[bench]` brings those with wheels.

Each function is called with the same tensors as ours and converts nothing that its users would not convert as well.
"""

from collections.abc import Iterable
from types import ModuleType

import numpy
import pytest
import torch
from torch import Tensor

from benchmarks.conftest import DEVICES

CPU_ONLY = ("fpsample kdline", "small_gicp", "pykdtree")


def rows(names: Iterable[str]) -> list[tuple[str, str]]:
    """The rows (name, device) that this machine can have; what is restated (benchmarks/classic.py) is for CUDA."""
    served = {"cpu": lambda name: "(restated)" not in name, "cuda": lambda name: name not in CPU_ONLY}
    return [(name, device) for device in DEVICES for name in names if served[device](name)]


def require(name: str) -> ModuleType:
    """The module, or its row is skipped with the reason."""
    return pytest.importorskip(name, reason=f"{name} is not installed: pip install 'pointpeft[bench]'")


def _by_cloud(search, query: Tensor, support: Tensor) -> tuple[Tensor, Tensor]:
    """Runs `search(query, support)` of a library that knows one cloud at a time, on each cloud."""
    found = [search(q, s) for q, s in zip(query.numpy(), support.numpy(), strict=True)]
    sq_distance, idx = (numpy.stack(part) for part in zip(*found, strict=True))
    return torch.from_numpy(sq_distance), torch.from_numpy(idx.astype(numpy.int64))


def small_gicp_knn(query: Tensor, support: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """small_gicp's k-d tree; it computes in float64."""
    module, threads = require("small_gicp"), torch.get_num_threads()

    def search(q, s):
        idx, sq_distance = module.KdTree(s.astype(numpy.float64), num_threads=threads).batch_knn_search(
            q.astype(numpy.float64), k, num_threads=threads
        )
        return sq_distance, idx

    return _by_cloud(search, query, support)


def pykdtree_knn(query: Tensor, support: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """pykdtree's k-d tree (OpenMP)."""
    tree = require("pykdtree.kdtree").KDTree

    def search(q, s):
        distance, idx = tree(s).query(q, k=k, sqr_dists=True)
        return distance.reshape(len(q), k), idx.reshape(len(q), k)

    return _by_cloud(search, query, support)


def torch_knn(query: Tensor, support: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """What most repositories write: a matrix product and `topk`."""
    norms = query.square().sum(-1)[:, :, None] + support.square().sum(-1)[:, None]
    found = torch.baddbmm(norms, query, support.transpose(1, 2), alpha=-2).topk(k, largest=False)
    return found.values.clamp_(min=0), found.indices


def torch_cdist_knn(query: Tensor, support: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`cdist` and `topk`, of distances that are not squared until they are found."""
    found = torch.cdist(query, support).topk(k, largest=False)
    return found.values.square(), found.indices


def torch_fps_sample_and_knn(xyz: Tensor, num_groups: int, group_size: int) -> tuple[Tensor, Tensor]:
    """torch-fps's sampling and neighbours as one call; it neither takes the rows nor centres them."""
    module = require("torch_fps")
    batch, n, _ = xyz.shape
    valid = xyz.new_ones(batch, n, dtype=torch.bool)
    start = xyz.new_zeros(batch, dtype=torch.int64)
    return module.farthest_point_sampling_with_knn(
        xyz, valid, num_groups, group_size, random_start=False, start_idx=start
    )


def torch_fps_sample(xyz: Tensor, num_samples: int) -> Tensor:
    """torch-fps: every point in every step; C++ compiled on first use, Triton on CUDA."""
    module = require("torch_fps")
    batch, n, _ = xyz.shape
    valid, start = xyz.new_ones(batch, n, dtype=torch.bool), xyz.new_zeros(batch, dtype=torch.int64)
    return module.farthest_point_sampling(xyz, valid, num_samples, random_start=False, start_idx=start)


def torch_quickfps_sample(xyz: Tensor, num_samples: int) -> Tensor:
    """torch-quickfps: buckets, of the height that is fastest at these sizes."""
    height = 3 if xyz.shape[1] < 4096 else 5 if xyz.shape[1] < 50_000 else 7
    return require("torch_quickfps").sample_idx(xyz, num_samples, h=height, start_idx=0)


def fpsample_sample(xyz: Tensor, num_samples: int) -> Tensor:
    """fpsample's buckets on one thread, one cloud at a time; it begins at a point of its own choice."""
    sample = require("fpsample").bucket_fps_kdline_sampling
    height = 3 if xyz.shape[1] < 4096 else 5 if xyz.shape[1] < 50_000 else 7
    picks = [sample(cloud, num_samples, h=height, start_idx=0).astype(numpy.int64) for cloud in xyz.numpy()]
    return torch.from_numpy(numpy.stack(picks))
