"""Points that depth cameras mark as not seen: refused with the way out named, or left out and counted."""

import io
import pickle
import tarfile

import h5py
import numpy as np
import pytest
import torch

from pointpeft.data import DataError, check, load_dataset, read_points
from pointpeft.data.part_loading import load_scenes, load_segments
from pointpeft.data.stream import stream
from pointpeft.tasks.batches import Clouds
from tests.data.conftest import write_folder
from tests.data.formats.test_pcd import KINDS, write_pcd
from tests.data.sets.test_few_shot import write_folds
from tests.data.sets.test_s3dis import write_rooms
from tests.data.sets.test_shapenetpart import write as write_shapenetpart


@pytest.fixture
def cloud():
    points = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    points[[3, 17], 1] = np.nan
    points[20] = np.inf
    return points


FILES = {
    **{f"{kind}.pcd": (lambda path, p, kind=kind: write_pcd(path, p, kind)) for kind in KINDS},
    "a.npy": lambda path, p: np.save(path, p),
    "a.npz": lambda path, p: np.savez(path, points=p),
    "a.xyz": lambda path, p: np.savetxt(path, p),
}


@pytest.mark.parametrize("name", FILES)
def test_they_are_left_out_and_counted(name, cloud, tmp_path):
    path = tmp_path / name
    FILES[name](path, cloud)
    with pytest.raises(DataError, match=r"3 of 40 points are not finite, the first is point 3; --drop-non-finite"):
        read_points(path)
    dropped = {}
    points = read_points(path, drop_non_finite=dropped)
    torch.testing.assert_close(points, torch.from_numpy(cloud[np.isfinite(cloud).all(1)]), atol=1e-6, rtol=1e-6)
    assert dropped == {str(path): 3}
    assert torch.equal(read_points(path, drop_non_finite=True), points)


def test_a_cloud_of_nothing_else_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.full((4, 3), np.nan))
    with pytest.raises(DataError, match="none of its 4 points is finite"):
        read_points(tmp_path / "a.npy", drop_non_finite=True)


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_data_set_counts_what_it_leaves_out(on_disk, cloud, tmp_path):
    root = write_folder(tmp_path / "set", {"train/a": 2, "train/b": 2, "test/a": 1, "test/b": 1}, points=40)
    np.save(root / "train/a/00.npy", cloud)
    np.save(root / "train/b/01.npy", cloud)
    dataset = load_dataset(root, "train", drop_non_finite=True)
    clouds = Clouds(dataset, 16, on_disk=on_disk)
    assert sorted(clouds.sizes) == [37, 37, 40, 40]
    assert clouds.notes == ("6 points that are not finite were left out of 2 clouds",)
    assert clouds.points[0].isfinite().all()
    with pytest.raises(DataError, match="--drop-non-finite"):
        Clouds(load_dataset(root, "train"), 16)
    assert not check(root).ok
    report = check(root, drop_non_finite=True)
    assert report.ok
    assert "note: 6 points that are not finite were left out of 2 clouds" in report.lines


def test_streams_leave_them_out(cloud, tmp_path):
    np.save(tmp_path / "a.npy", cloud)
    content = io.BytesIO()
    np.savetxt(content, cloud)
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for name, data in (("x.npy", (tmp_path / "a.npy").read_bytes()), ("y.xyz", content.getvalue())):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))
    dropped = {}
    clouds = [source.read() for source in stream([tmp_path / "a.npy", tmp_path / "a.tar"], True, dropped)]
    assert [len(points) for points in clouds] == [37, 37, 37]
    assert dropped == {str(tmp_path / "a.npy"): 3, f"{tmp_path}/a.tar/x.npy": 3, f"{tmp_path}/a.tar/y.xyz": 3}


def write_h5(path, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            file[name] = value


def spoilt(random, count=4, points=40):
    """Clouds of which the first has three points that are not finite, the second one."""
    data = random.normal(size=(count, points, 3)).astype(np.float32)
    data[0, [3, 17], 1] = np.nan
    data[0, 20] = np.inf
    data[1, 5, 0] = -np.inf
    return data


def write_modelnet_h5(root, data):
    for part in ("train", "test"):
        write_h5(root / f"ply_data_{part}0.h5", data=data, label=np.arange(len(data))[:, None] % 2)
    (root / "shape_names.txt").write_text("a\nb\n")
    return str(root)


def write_modelnet_cache(root, data):
    root.mkdir()
    (root / "modelnet40_shape_names.txt").write_text("a\nb\n")
    for part in ("train", "test"):
        content = [list(data), [np.array([i % 2]) for i in range(len(data))]]
        (root / f"modelnet40_{part}_8192pts_fps.dat").write_bytes(pickle.dumps(content))
    return str(root)


def write_modelnet_text(root, data):
    (root / "a").mkdir(parents=True)
    for i, points in enumerate(data):
        np.savetxt(root / "a" / f"a_{i:04}.txt", points, delimiter=",")
    (root / "modelnet40_shape_names.txt").write_text("a\n")
    for part in ("train", "test"):
        (root / f"modelnet40_{part}.txt").write_text("".join(f"a_{i:04}\n" for i in range(len(data))))
    return str(root)


def write_scans(root, data):
    for part in ("training", "test"):
        write_h5(root / "main_split" / f"{part}_objectdataset.h5", data=data, label=np.arange(len(data)))
    return f"scanobjectnn:{root}:obj_bg"


def write_hdf5_shards(root, data):
    for part in ("train", "test"):
        write_h5(root / f"{part}.h5", data=data, label=np.arange(len(data)) % 2)
    return str(root)


def write_one_shard(root, data):
    write_h5(root / "all.h5", data=data, label=np.zeros(len(data), int))
    return str(root / "all.h5")


def write_tar_shards(root, data):
    root.mkdir()
    for part in ("train", "test"):
        with tarfile.open(root / f"{part}.tar", "w") as shard:
            for i, points in enumerate(data):
                array = io.BytesIO()
                np.save(array, points)
                for name, content in ((f"{i}.npy", array.getvalue()), (f"{i}.cls", str(i % 2).encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    shard.addfile(info, io.BytesIO(content))
    return str(root)


SETS = {
    "ModelNet40 HDF5": write_modelnet_h5,
    "ModelNet40 cache": write_modelnet_cache,
    "ModelNet40 text": write_modelnet_text,
    "ScanObjectNN": write_scans,
    "HDF5 shards": write_hdf5_shards,
    "tar shards": write_tar_shards,
}


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("name", SETS)
def test_every_data_set_leaves_them_out_and_counts_them(name, lazy, tmp_path):
    data = spoilt(np.random.default_rng(0))
    source = SETS[name](tmp_path / "set", data)
    with pytest.raises(DataError, match=r"not finite.*; --drop-non-finite \(drop_non_finite=True\) leaves them out"):
        Clouds(load_dataset(source, lazy=lazy), 16)
    assert not check(source).ok
    dataset = load_dataset(source, lazy=lazy, drop_non_finite=True)
    clouds = Clouds(dataset, 16, on_disk=lazy)
    assert list(clouds.sizes) == [37, 39, 40, 40]
    assert clouds.notes == ("4 points that are not finite were left out of 2 clouds",)
    assert all(dataset[i][0].isfinite().all() for i in range(4))
    assert pickle.loads(pickle.dumps(dataset))[0][0].shape == (37, 3)
    report = check(source, drop_non_finite=True)
    assert report.ok, report.lines
    assert any("points that are not finite were left out of" in line for line in report.lines)


def test_a_test_part_that_is_drawn_counts_its_own_points(tmp_path):
    source = write_one_shard(tmp_path / "set", spoilt(np.random.default_rng(0), count=10))
    lost = {}
    for split in ("train", "test"):
        clouds = Clouds(load_dataset(source, split, drop_non_finite=True), 16)
        lost[split] = 40 * len(clouds.sizes) - sum(clouds.sizes)
        assert [note for note in clouds.notes if "not finite" in note] == (
            [f"{lost[split]} points that are not finite were left out of {sum(s < 40 for s in clouds.sizes)} clouds"]
            if lost[split]
            else []
        )
    assert sum(lost.values()) == 4


def test_folds_leave_them_out(tmp_path):
    root = write_folds(tmp_path / "folds")
    path = root / "3way_2shot" / "0.pkl"
    content = pickle.loads(path.read_bytes())
    content["train"][0][0][2, 1] = np.nan
    content["test"][1][0][4, 0] = np.inf
    path.write_bytes(pickle.dumps(content))
    word = f"few_shot:{root}:3way2shot:0"
    with pytest.raises(DataError, match="1 of 20 points are not finite, the first is point 2; --drop-non-finite"):
        load_dataset(word)
    dataset = load_dataset(word, drop_non_finite=True)
    assert dataset.notes == ("1 points that are not finite were left out of 1 clouds",)
    source = write_hdf5_shards(tmp_path / "set", spoilt(np.random.default_rng(0)))
    drawn = Clouds(load_dataset(f"few_shot:{source}:2way1shot:0", "test", drop_non_finite=True), 16)
    assert "4 points that are not finite were left out of 2 clouds" in drawn.notes


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("end", [".npz", ".h5", "shapenetpart"])
def test_labelled_points_lose_their_labels_with_them(end, lazy, tmp_path):
    points = spoilt(np.random.default_rng(0))[0]
    parts = np.arange(40) % 2
    if end == "shapenetpart":
        source = write_shapenetpart(tmp_path / "set", per_split=1, points=40)
        path = next(source.glob("*/train*.txt"))
        table = np.loadtxt(path)
        table[:, :3] = points
        np.savetxt(path, table)
        parts = table[:, -1].astype(int)
    else:
        source = tmp_path / "set"
        for part in ("train", "test"):
            path = source / part / f"0{end}"
            path.parent.mkdir(parents=True)
            arrays = {"xyz": points, "label": parts}
            np.savez(path, **arrays) if end == ".npz" else write_h5(path, **arrays)

    finite = np.isfinite(points).all(1)
    with pytest.raises(DataError, match=r"not finite.*; --drop-non-finite \(drop_non_finite=True\) leaves them out"):
        list(load_segments(source, lazy=lazy))
    dataset = load_segments(source, lazy=lazy, drop_non_finite=True)
    found = next(item for item in dataset if len(item[0]) == 37)
    assert found[2].tolist() == parts[finite].tolist()
    assert dataset.notes[-1] == "3 points that are not finite were left out of 1 clouds"
    assert check(source, labels="parts", drop_non_finite=True).ok
    assert not check(source, labels="parts").ok


def test_scenes_lose_their_labels_with_them(tmp_path):
    root = write_rooms(tmp_path / "rooms", points=50)
    path = root / "Area_5_office_1.npy"
    table = np.load(path)
    table[7, 2] = np.nan
    np.save(path, table)
    with pytest.raises(DataError, match=r"1 of 50 points are not finite, the first is point 7; --drop-non-finite"):
        load_scenes(root, "test")[0]
    dataset = load_scenes(root, "test", drop_non_finite=True)
    points, labels = dataset[0]
    assert points.shape == (49, 3)
    assert labels.tolist() == np.delete(table[:, 6], 7).astype(int).tolist()
    assert dataset.notes[-1] == "1 points that are not finite were left out of 1 clouds"


def test_rows_of_streams_leave_them_out(tmp_path):
    source = write_one_shard(tmp_path, spoilt(np.random.default_rng(0)))
    rows = stream([tmp_path / "all.h5"], True)
    first = next(rows)
    with pytest.raises(DataError, match=r"all\.h5\[0\]: 3 of 40 points are not finite.*--drop-non-finite"):
        first.read()
    dropped = {}
    assert [len(row.read()) for row in stream([tmp_path / "all.h5"], True, dropped)] == [37, 39, 40, 40]
    assert dropped == {f"{source}[0]": 3, f"{source}[1]": 1}


@pytest.mark.parametrize("source", ["furniture", "few_shot:furniture:2way2shot:0"])
def test_a_data_set_of_finite_points_has_no_such_option(source):
    with pytest.raises(
        ValueError, match=f"drop_non_finite must not be given for {source}, whose points are all finite"
    ):
        load_dataset(source, drop_non_finite=True)
