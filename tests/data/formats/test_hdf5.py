import multiprocessing
import pickle

import h5py
import numpy as np
import pytest
import torch

from pointpeft.data import DataError, load_dataset
from pointpeft.data.formats import hdf5
from pointpeft.data.formats.hdf5 import H5Rows, list_h5, read_h5
from tests.data.conftest import clouds, write_h5


@pytest.fixture
def files(tmp_path):
    """12 clouds in three files: contiguous, chunked and compressed, and float16."""
    data = clouds(12)
    write_h5(tmp_path / "0.h5", data[:5], np.zeros(5, int))
    with h5py.File(tmp_path / "1.h5", "w") as file:
        file.create_dataset("data", data=data[5:9], chunks=(2, 7, 1), compression="gzip")
        file["label"] = np.zeros(4, int)
    write_h5(tmp_path / "2.h5", data[9:].astype(np.float16), np.zeros(3, int))
    return [tmp_path / f"{i}.h5" for i in range(3)]


def rows_of(files):
    return H5Rows(files, [list_h5(path, 1)[0][0] for path in files])


def test_rows_are_those_of_the_whole_files(files):
    whole = torch.cat([read_h5(path, 1)[0] for path in files])
    rows = rows_of(files)
    assert len(rows) == 12
    for i in (11, 0, 5, 4, 8, 9, 3, 6):
        assert torch.equal(rows(i), whole[i])


def _sums(rows, order, results):
    results.put([float(rows(i).sum()) for i in order])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_every_process_opens_files_of_its_own(files, method):
    rows, order = rows_of(files), list(range(12))
    expected = [float(rows(i).sum()) for i in order]  # open here, before the others start
    context = multiprocessing.get_context(method)
    results = context.SimpleQueue()
    processes = [context.Process(target=_sums, args=(rows, order[:: 1 - 2 * i], results)) for i in range(2)]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(map(sorted, found)) == [sorted(expected)] * 2
    assert [float(rows(i).sum()) for i in order] == expected


def test_few_files_are_open_at_once(files, monkeypatch):
    monkeypatch.setattr(hdf5, "OPEN_FILES", 2)
    rows = rows_of(files)
    first = rows(0)
    for i in (5, 9, 0, 11, 6):
        rows(i)
        assert len(rows.files._open) <= 2
    assert torch.equal(rows(0), first)
    assert not pickle.loads(pickle.dumps(rows)).files._open


def test_the_chunks_of_a_row_stay_unpacked(files):
    with h5py.File(files[1]) as file:
        assert hdf5._row_cache(file["data"]) == 1 << 20  # small ones: what HDF5 keeps anyway
    with h5py.File(files[0].parent / "wide.h5", "w") as file:
        data = file.create_dataset("data", (64, 4096, 3), "f4", chunks=(32, 1024, 3))
        assert hdf5._row_cache(data) == 2 * 32 * 4096 * 3 * 4


def test_a_bad_row_is_named(files, tmp_path):
    bad = clouds(3)
    bad[1, 2, 0] = np.nan
    write_h5(tmp_path / "bad.h5", bad, np.zeros(3, int))
    rows = rows_of([files[0], tmp_path / "bad.h5"])
    assert rows(7).isfinite().all()
    with pytest.raises(DataError, match=r"bad\.h5\[1\]: has points that are not finite"):
        rows(6)
    content = (tmp_path / "1.h5").read_bytes()
    with h5py.File(tmp_path / "1.h5") as file:
        place = file["data"].id.get_chunk_info(0).byte_offset
    (tmp_path / "1.h5").write_bytes(content[:place] + b"\0" * 40 + content[place + 40 :])
    with pytest.raises(DataError, match=r"1\.h5\[0\]: cannot be read"):
        rows_of([tmp_path / "1.h5"])(0)


@pytest.mark.parametrize("fixture", ["hdf5_root", "scan_root"])
@pytest.mark.parametrize("num_points", [None, 5])
def test_lazy_data_sets_are_the_same(fixture, num_points, request):
    root = request.getfixturevalue(fixture)
    for split in ("train", "test"):
        eager, lazy = (load_dataset(root, split, num_points=num_points, lazy=lazy) for lazy in (False, True))
        assert (eager.names, eager.classes, eager.normalized) == (lazy.names, lazy.classes, lazy.normalized)
        assert torch.equal(eager.labels, lazy.labels)
        assert lazy.sizes == [len(eager[i][0]) for i in range(len(eager))]
        assert all(torch.equal(eager[i][0], lazy[i][0]) for i in range(len(eager)))
        part = lazy.subset([1, 0])
        assert part.sizes == [lazy.sizes[1], lazy.sizes[0]]
        assert torch.equal(part[0][0], eager[1][0])
