"""Small files that announce, or unpack to, more than they hold: each is refused before memory is taken for it."""

import re
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest

from pointpeft.data import DataError, read_points
from pointpeft.data.formats.hdf5 import read_h5
from pointpeft.data.sets.part_files import load as load_segments
from pointpeft.data.sets.shards import load as load_shards
from pointpeft.data.stream import stream

MEBIBYTE = 1 << 20
STATUS = Path("/proc/self/status")


def resident(entry):
    return int(re.search(rf"{entry}:\s*(\d+) kB", STATUS.read_text())[1]) << 10


@contextmanager
def memory(most):
    """Holds what runs inside it to `most` bytes beyond what the process had, libraries' memory included."""
    if not STATUS.exists():
        pytest.skip("the highest use of memory is read from /proc")
    Path("/proc/self/clear_refs").write_text("5")  # the highest use so far is forgotten
    before = resident("VmRSS")
    yield
    assert resident("VmHWM") - before < most


def read_first(path):
    for source in stream([path], normalized=True):
        source.read()


READS_HDF5 = {
    "read_h5": lambda path: read_h5(path, None),
    "parts": lambda path: load_segments(path, "train"),
    "parts on disk": lambda path: load_segments(path, "train", lazy=True)[0],
    "shards": lambda path: load_shards(path, "train"),
    "shards on disk": lambda path: load_shards(path, "train", lazy=True)[0],
    "stream": read_first,
}


def refused(read, path, words="refused: it would unpack to", most=16 * MEBIBYTE):
    with memory(most), pytest.raises(DataError, match=rf"{re.escape(path.name)}[^:]*: {words}"):
        read(path)


@pytest.mark.parametrize("read", READS_HDF5.values(), ids=READS_HDF5)
@pytest.mark.parametrize("key", ["data", "seg", "name"])
def test_a_chunk_of_an_hdf5_file_is_bounded(key, read, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["label"] = np.zeros(1, np.int64)
        content = {
            "data": np.ones((1, 64, 3), np.float32),
            "seg": np.zeros((1, 64), np.int64),
            "name": np.array([b"a"], "S1000"),
        }
        for name, values in content.items():
            options = {}
            if name == key:
                chunks = (1, 10**7, 3)[: values.ndim] if values.ndim > 1 else (200_000,)
                options = {"maxshape": (None,) * values.ndim, "chunks": chunks, "compression": "gzip"}
            file.create_dataset(name, data=values, **options)
    assert (tmp_path / "a.h5").stat().st_size < MEBIBYTE
    refused(read, tmp_path / "a.h5")


@pytest.mark.parametrize("read", READS_HDF5.values(), ids=READS_HDF5)
@pytest.mark.parametrize("key", ["data", "seg", "name"])
def test_an_hdf5_dataset_that_was_never_written_takes_no_memory(key, read, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["label"] = np.zeros(1, np.int64)
        shapes = {"data": (1, 64, 3), "seg": (1, 64), "name": (1,)}
        for name, shape in shapes.items():
            kind = "S8" if name == "name" else "u1"
            if name == key:
                shape = (1, 10**7, 3)[: len(shape)] if len(shape) > 1 else (10**8,)
            file.create_dataset(name, shape, kind)
    refused(read, tmp_path / "a.h5")


def test_the_size_of_an_hdf5_dataset_does_not_wrap_around(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["label"] = np.zeros(1, np.int64)
        file.create_dataset("data", (2**22, 2**22, 2**22), "f4", chunks=(1, 64, 3))
    refused(READS_HDF5["read_h5"], tmp_path / "a.h5")


@pytest.mark.parametrize("key", ["name", "classes", "split"])
@pytest.mark.parametrize("shape", [(3000,), (3000, 1), (1, 3000)])
def test_strings_that_are_stored_once_and_named_often_are_bounded(key, shape, tmp_path):
    count = shape[0] * shape[-1] if len(shape) > 1 else shape[0]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = np.random.default_rng(0).normal(size=(count, 4, 3)).astype(np.float32)
        file["label"] = np.zeros(count, np.int64)
        file["seg"] = np.zeros((count, 4), np.int64)
        names = file.create_dataset(key, (1,), h5py.string_dtype())
        names[0] = "x" * MEBIBYTE
        place = names.id.get_offset()
        many = file.create_dataset("many", shape, h5py.string_dtype())
        many[...] = "y"
        to = many.id.get_offset()
    content = bytearray((tmp_path / "a.h5").read_bytes())
    content[to : to + 16 * count] = content[place : place + 16] * count
    (tmp_path / "a.h5").write_bytes(content)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file[key]
        file.move("many", key)
    assert (tmp_path / "a.h5").stat().st_size < 3 * MEBIBYTE
    refused(READS_HDF5["parts"], tmp_path / "a.h5", most=300 * MEBIBYTE)
    if key == "name":
        refused(READS_HDF5["read_h5"], tmp_path / "a.h5", most=300 * MEBIBYTE)
    if key == "classes":
        refused(READS_HDF5["shards"], tmp_path / "a.h5", most=300 * MEBIBYTE)


def test_a_label_of_a_shard_is_bounded(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = np.random.default_rng(0).normal(size=(2, 64, 3)).astype(np.float32)
        file["label"] = np.array([0, 10**9])
    refused(READS_HDF5["shards"], tmp_path / "a.h5", "labels must be below 10000, got 1000000000")


def test_bytes_become_numbers_of_eight(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", points=np.zeros((3 * MEBIBYTE, 3), np.uint8))
    assert (tmp_path / "a.npz").stat().st_size < MEBIBYTE / 50
    refused(read_points, tmp_path / "a.npz")
    refused(READS_HDF5["parts"], tmp_path / "a.npz")
