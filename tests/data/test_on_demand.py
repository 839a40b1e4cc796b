"""Clouds on disk: the same batches and results as from memory, and memory that does not grow."""

import json
import os
import subprocess
import sys
import threading
import time

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pointpeft.data import DataError, PointCloudDataset, load_dataset
from pointpeft.data.on_demand import OnDemand, read_ahead
from pointpeft.data.part_loading import load_segments
from pointpeft.runs.config import EvaluateConfig, FinetuneConfig, PretrainConfig
from pointpeft.runs.evaluate import evaluate
from pointpeft.runs.finetune import finetune
from pointpeft.runs.pretrain import pretrain
from pointpeft.tasks.batches import Clouds
from pointpeft.tasks.inference import Voting
from tests.clouds import TINY, TINY_MODEL, write_clouds, write_parts


def write_shards(root, train=24, test=12, points=90, seed=0):
    """Ellipsoids of three proportions as HDF5 shards, of several sizes."""
    random = np.random.default_rng(seed)
    root.mkdir()
    for name, count in (("train-0", train // 2), ("train-1", train - train // 2), ("test", test)):
        label = np.arange(count) % 3
        data = random.normal(size=(count, points, 3))
        data /= np.linalg.norm(data, axis=-1, keepdims=True)
        data *= np.array([(1, 1, 1), (1, 0.1, 1), (0.1, 1, 0.1)])[label][:, None]
        with h5py.File(root / f"{name}.h5", "w") as file:
            file["data"], file["label"] = data.astype(np.float32), label
    return root


def both(dataset, num_points, workers=0):
    return Clouds(dataset, num_points), Clouds(dataset, num_points, on_disk=True, workers=workers)


def epoch(clouds, seed=3, rank=0, world=1):
    return list(clouds.batches(5, torch.Generator().manual_seed(seed), rank, world))


def same(first, second):
    assert len(first) == len(second)
    for (points, labels), (other, others) in zip(first, second, strict=True):
        assert torch.equal(points, other)
        assert torch.equal(labels, others)


@pytest.mark.parametrize("sizes", [[30] * 13, [5, 12, 30] * 4, [10] * 6])
def test_batches_and_evaluation_are_those_of_memory(sizes):
    generator = torch.Generator().manual_seed(0)
    points = [torch.randn(n, 3, generator=generator) for n in sizes]
    for known in (sizes, None):
        dataset = PointCloudDataset(points, [i % 2 for i in range(len(sizes))], ("a", "b"), sizes=known)
        memory, disk = both(dataset, 10)
        assert memory.sizes == disk.sizes == sizes
        same(epoch(memory), epoch(disk))
        same(epoch(memory, 1, 1, 2), epoch(disk, 1, 1, 2))
        chosen = [len(sizes) - 1, 0, 2, 1, 3]
        same(epoch(memory.subset(chosen)), epoch(disk.subset(chosen)))
        for one, other in zip(Voting(3, 1).views(memory), Voting(3, 1).views(disk), strict=True):
            assert isinstance(other, OnDemand)
            assert torch.equal(torch.cat(list(other.split(4))), one)


def test_workers_read_the_same_batches(tmp_path):
    dataset = load_dataset(write_shards(tmp_path / "s"), lazy=True)
    memory, disk = both(dataset, 64, workers=2)
    before = torch.get_rng_state()
    expected = epoch(memory)
    for method in (None, "spawn"):
        disk.start_method = method
        same(expected, epoch(disk))
        assert torch.equal(torch.get_rng_state(), before)  # how clouds are read must not change dropout


LOCK = threading.Lock()


def locked_row(index):
    with LOCK:
        return torch.full((4, 3), float(index))


def slow_row(index):
    time.sleep(120)
    return torch.zeros(4, 3)


def jobs(count):
    return [([i], torch.arange(4)[None]) for i in range(count)]


def test_workers_start_without_the_locks_that_other_threads_hold():
    with LOCK:  # a fork of this process would copy it as it is, and wait for ever
        found = list(read_ahead(OnDemand(locked_row, range(3)), jobs(3), workers=1))
    assert [float(points.mean()) for points in found] == [0.0, 1.0, 2.0]


def test_a_worker_that_hangs_is_an_error(monkeypatch):
    monkeypatch.setattr("pointpeft.data.on_demand.WAIT", 1.0)
    with pytest.raises(TimeoutError, match="1 workers have read no batch for 1 s, and none of them has died"):
        list(read_ahead(OnDemand(slow_row, range(1)), jobs(1), workers=1))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_cloud_is_named_through_workers(tmp_path, workers):
    root = write_shards(tmp_path / "s")
    with h5py.File(root / "train-1.h5", "a") as file:
        file["data"][4, 0, 0] = np.nan
    clouds = Clouds(load_dataset(root, lazy=True), 64, on_disk=True, workers=workers)
    message = r"^\S*train-1\.h5\[4\]: has points that are not finite; --drop-non-finite .*leaves them out$"
    with pytest.raises(DataError, match=message):
        epoch(clouds)


def weights(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_a_run_on_disk_ends_with_the_same_weights_and_numbers(tmp_path):
    root = write_shards(tmp_path / "s")
    found = []
    for where, workers in (("memory", 0), ("disk", 0), ("disk", 1)):
        output = tmp_path / f"{where}{workers}"
        options = {**TINY, "set": TINY_MODEL, "votes": 2, "checkpoint": "none", "device": "cpu", "quiet": True}
        finetune(FinetuneConfig(data=str(root), output=output, clouds_in=where, workers=workers, **options))
        facts = json.loads((output / "result.json").read_text())
        assert facts["clouds_in"] == where
        found.append((facts, weights(output)))
    reports = [
        evaluate(EvaluateConfig(tmp_path / "disk0", clouds_in=where, votes=2, device="cpu", quiet=True))
        for where in ("memory", "disk")
    ]
    assert [report.clouds_in for report in reports] == ["memory", "disk"]
    assert reports[0].test == reports[1].test
    assert reports[0].per_class == reports[1].per_class
    (expected, tensors), *others = found
    for facts, other in others:
        for part in ("test", "validation", "linear_probe", "selection"):
            assert facts[part] == expected[part]
        assert all(torch.equal(other[name], value) for name, value in tensors.items())


def test_pre_training_on_disk_gives_the_same_weights(tmp_path):
    root = write_shards(tmp_path / "s")
    found = []
    for where in ("memory", "disk"):
        options = {"epochs": 2, "num_points": 64, "batch_size": 8, "max_clouds": 20, "set": TINY_MODEL[:-1]}
        result = pretrain(
            PretrainConfig(
                data=str(root), output=tmp_path / where, clouds_in=where, device="cpu", quiet=True, **options
            )
        )
        found.append(load_file(result.weights))
    assert all(torch.equal(found[1][name], value) for name, value in found[0].items())


def test_size_decides_and_says_so(tmp_path, monkeypatch, capsys):
    root = write_shards(tmp_path / "s")
    options = {"set": TINY_MODEL, "checkpoint": "none", "device": "cpu", "quiet": True, "probe": False, **TINY}
    needed = 36 * 12 * (90 + 77)  # bytes: the files' points, and 1.2 x 64 of each
    for free, where in ((2 * needed, "memory"), (2 * needed - 2, "disk")):
        monkeypatch.setattr("pointpeft.tasks.storage.free_memory", lambda free=free: free)
        result = finetune(FinetuneConfig(data=str(root), output=tmp_path / where, **options))
        assert result.clouds_in == where
        assert ("they stay on disk" in capsys.readouterr().err) == (where == "disk")
    folder = write_clouds(tmp_path / "scans")  # files one by one: counted as large as they can become
    monkeypatch.setattr("pointpeft.tasks.storage.free_memory", lambda: 2 * 48 * 12 * 77 - 2)
    result = finetune(FinetuneConfig(data=str(folder), output=tmp_path / "folder", **options))
    assert result.clouds_in == "disk"


def test_size_decides_for_labelled_points(tmp_path, monkeypatch):
    data = write_parts(tmp_path / "parts.h5")
    clouds = sum(len(load_segments(data, split)) for split in ("train", "test"))
    common = {"set": TINY_MODEL, "checkpoint": "none", "device": "cpu", "quiet": True, "task": "part_segmentation"}
    for free, where in ((2 * clouds * 90 * 16, "memory"), (2 * clouds * 90 * 16 - 2, "disk")):
        monkeypatch.setattr("pointpeft.tasks.storage.free_memory", lambda free=free: free)
        result = finetune(FinetuneConfig(data=str(data), output=tmp_path / where, **common, **TINY))
        assert result.clouds_in == where


def test_rooms_stay_in_memory(tmp_path):
    with pytest.raises(ValueError, match="clouds_in must be auto or memory for semantic_segmentation"):
        finetune(
            FinetuneConfig(data=str(tmp_path), task="semantic_segmentation", clouds_in="disk", output=tmp_path / "r")
        )
    with pytest.raises(ValueError, match="workers must be at least 0, got -1"):
        finetune(FinetuneConfig(workers=-1, output=tmp_path / "r"))


GROWTH = """
import sys, torch
from pointpeft.data import load_dataset
from pointpeft.tasks.batches import Clouds

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))

where = sys.argv[2]
load_dataset(sys.argv[1], "test", lazy=True)[0]
before, most = resident(), 0
clouds = Clouds(load_dataset(sys.argv[1], lazy=where == "disk"), 1024, on_disk=where == "disk")
for points, _ in clouds.batches(32, torch.Generator().manual_seed(0)):
    most = max(most, resident())
for points in clouds.fixed().split(32):
    most = max(most, resident())
print((most - before) // 1024)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the system has no /proc/self/status")
def test_memory_does_not_grow_with_the_data(tmp_path):
    """3000 clouds of 1500 points, 51 MiB in the file; in memory at least the 1229 points that are kept of each."""
    with h5py.File(tmp_path / "train.h5", "w") as file:
        data = file.create_dataset("data", (3000, 1500, 3), "f4")
        block = np.random.default_rng(0).normal(size=(100, 1500, 3))
        for start in range(0, 3000, 100):
            data[start : start + 100] = block + start
        file["label"] = np.zeros(3000, int)
    with h5py.File(tmp_path / "test.h5", "w") as file:
        file["data"], file["label"] = block[:2].astype(np.float32), [0, 0]
    grown = {
        where: int(subprocess.check_output([sys.executable, "-c", GROWTH, str(tmp_path), where]))
        for where in ("memory", "disk")
    }
    assert grown["disk"] < 20  # MiB; measured 3
    assert grown["memory"] > 42
