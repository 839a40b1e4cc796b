"""Clouds in map coordinates keep their detail on every way from a file to a model."""

import io
import pickle
import tarfile

import h5py
import numpy as np
import pytest
import torch

from pointpeft.data import check, load_dataset, normalize, read_points
from pointpeft.data.sets import part_files, shapenetpart
from pointpeft.data.stream import stream
from pointpeft.data.transforms import move_to_origin, normalize_precisely
from tests.data.sets.test_shapenetpart import write as write_shapenetpart

CLOUDS = np.random.default_rng(0).uniform(-0.5, 0.5, (12, 60, 3))
FAR = CLOUDS + np.array([4123456.5, 2630000.25, 801234.5])
RIGHT = normalize(torch.from_numpy(CLOUDS)).float()


def h5(path, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            file[name] = value


def write_shards(root, dtype=np.float64, factor=1):
    for part, keep in (("train", slice(0, 8)), ("test", slice(8, 12))):
        data = (FAR[keep] * factor).round() if factor > 1 else FAR[keep]
        h5(root / f"{part}.h5", data=data.astype(dtype), label=np.arange(12)[keep] % 2)
    return root


def write_tar(root):
    for part, keep in (("train", range(8)), ("test", range(8, 12))):
        root.mkdir(exist_ok=True)
        with tarfile.open(root / f"{part}.tar", "w") as shard:
            for i in keep:
                cloud = io.BytesIO()
                np.save(cloud, FAR[i])
                for name, content in ((f"{i}.npy", cloud.getvalue()), (f"{i}.cls", str(i % 2).encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    shard.addfile(info, io.BytesIO(content))
    return root


def write_modelnet(root):
    h5(root / "ply_data_train0.h5", data=FAR[:8], label=np.arange(8)[:, None] % 2)
    h5(root / "ply_data_test0.h5", data=FAR[8:], label=np.arange(4)[:, None] % 2)
    (root / "shape_names.txt").write_text("a\nb\n")
    return root


def write_cache(root):
    root.mkdir()
    (root / "modelnet40_shape_names.txt").write_text("a\nb\n")
    for part, keep in (("train", slice(0, 8)), ("test", slice(8, 12))):
        content = [list(FAR[keep]), [np.array([i % 2]) for i in range(len(FAR[keep]))]]
        (root / f"modelnet40_{part}_8192pts_fps.dat").write_bytes(pickle.dumps(content))
    return root


def write_folder(root, end=".xyz"):
    for i in range(12):
        path = root / ("train" if i < 8 else "test") / "ab"[i % 2] / f"{i:02}{end}"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savetxt(path, FAR[i], fmt="%.8f")
    return root


SETS = {"shards": write_shards, "tar": write_tar, "modelnet40": write_modelnet, "cache": write_cache}


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("name", SETS)
def test_data_sets(name, lazy, tmp_path):
    dataset = load_dataset(SETS[name](tmp_path / "set"), "train", lazy=lazy)
    assert all(dataset[i][0].dtype == torch.float32 for i in range(8))
    torch.testing.assert_close(torch.stack([dataset[i][0] for i in range(8)]), RIGHT[:8], atol=1e-6, rtol=0)


@pytest.mark.parametrize("lazy", [False, True])
def test_scanobjectnn_is_moved_and_nothing_else(lazy, tmp_path):
    for part, keep in (("training", slice(0, 8)), ("test", slice(8, 12))):
        path = tmp_path / "main_split" / f"{part}_objectdataset.h5"
        h5(path, data=np.concatenate([FAR[keep], CLOUDS[keep]]), label=np.arange(len(FAR[keep]) * 2) % 15)
    dataset = load_dataset(f"scanobjectnn:{tmp_path}:obj_bg", lazy=lazy)
    centred = CLOUDS - CLOUDS.mean(1, keepdims=True)
    for i in range(8):
        torch.testing.assert_close(dataset[i][0], torch.from_numpy(centred[i]).float(), atol=1e-7, rtol=0)
        assert torch.equal(dataset[8 + i][0], torch.from_numpy(CLOUDS[i]).float())  # near the origin: as it is
    cut = load_dataset(f"scanobjectnn:{tmp_path}:obj_bg", num_points=9, lazy=lazy)[0][0]
    assert cut.mean(0).abs().max() < 1e-6


def test_models_of_clouds_that_are_not_normalised(tmp_path):
    write_shards(tmp_path / "set")
    write_tar(tmp_path / "set")
    write_folder(tmp_path / "folder")
    centred = torch.from_numpy(CLOUDS - CLOUDS.mean(1, keepdims=True)).float()
    for name in ("train.h5", "train.tar"):
        clouds = [source.read() for source in stream([tmp_path / "set" / name], False)]
        torch.testing.assert_close(torch.stack(clouds), centred[:8], atol=1e-6, rtol=0)
    for path in sorted((tmp_path / "folder").rglob("*.xyz")):
        for found in (read_points(path, near_origin=True), next(stream([path], False)).read()):
            torch.testing.assert_close(found, centred[int(path.stem)], atol=1e-6, rtol=0)


def test_clouds_near_the_origin_are_not_moved():
    points = torch.randn(3, 40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(move_to_origin(points), points.float())
    mixed = torch.stack([points[0], points[1] + 1e6])
    result = move_to_origin(mixed)
    assert torch.equal(result[0], points[0].float())
    torch.testing.assert_close(result[1], (points[1] - points[1].mean(0)).float(), atol=1e-6, rtol=0)
    assert torch.equal(move_to_origin(mixed[1]), result[1])


def test_folders(tmp_path):
    dataset = load_dataset(write_folder(tmp_path / "set"), "test")
    for i in range(4):
        number = int(dataset.names[i].rsplit("/", 1)[1][:2])
        torch.testing.assert_close(dataset[i][0], RIGHT[number], atol=1e-6, rtol=0)


def test_whole_numbers_of_millimetres(tmp_path):
    dataset = load_dataset(write_shards(tmp_path / "set", np.int64, 1000), "train")
    torch.testing.assert_close(dataset[3][0], RIGHT[3], atol=2e-3, rtol=0)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("end", [".npz", ".h5"])
def test_labelled_points(end, lazy, tmp_path):
    for part in ("train", "test"):
        folder = tmp_path / part / "bolt"
        folder.mkdir(parents=True)
        for i in range(4):
            arrays = {"xyz": FAR[i], "label": (CLOUDS[i, :, 2] > 0).astype(int)}
            np.savez(folder / f"{i}.npz", **arrays) if end == ".npz" else h5(folder / f"{i}.h5", **arrays)
    dataset = part_files.load(tmp_path, "train", lazy=lazy)
    for i in range(4):
        torch.testing.assert_close(dataset[i][0], RIGHT[i], atol=1e-6, rtol=0)


def test_shapenetpart_as_text(tmp_path):
    root = write_shapenetpart(tmp_path / "s", per_split=1, points=60)
    path = next(root.glob("*/train*.txt"))
    table = np.loadtxt(path)
    table[:, :3] = FAR[0]
    np.savetxt(path, table, fmt="%.8f")
    dataset = shapenetpart.load(root, "train")
    index = next(i for i, name in enumerate(dataset.names) if path.name in name and path.parent.name in name)
    torch.testing.assert_close(dataset[index][0], RIGHT[0], atol=1e-6, rtol=0)


def test_streams(tmp_path):
    write_shards(tmp_path / "set")
    write_tar(tmp_path / "set")
    for name in ("train.h5", "train.tar"):
        clouds = [source.read() for source in stream([tmp_path / "set" / name], True)]
        torch.testing.assert_close(torch.stack(clouds), RIGHT[:8], atol=1e-6, rtol=0)


@pytest.mark.parametrize("write", [write_folder, write_shards, write_tar, write_modelnet, write_cache])
def test_the_check_finds_nothing_wrong(write, tmp_path):
    report = check(write(tmp_path / "set"))
    assert report.ok, report.lines


def test_scenes_are_moved_to_their_corner_before_they_are_rounded(tmp_path):
    np.save(tmp_path / "a.npy", FAR[0])
    expected = torch.from_numpy(CLOUDS[0] - CLOUDS[0].min(0)).float()
    torch.testing.assert_close(read_points(tmp_path / "a.npy", from_corner=True), expected, atol=1e-6, rtol=0)


def test_clouds_near_the_origin_are_normalised_as_published():
    points = torch.randn(5, 40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(normalize_precisely(points), normalize(points.float()))
    mixed = torch.stack([points[0], points[1] + 1e6])
    result = normalize_precisely(mixed)
    assert torch.equal(result[0], normalize(points[0].float()))
    torch.testing.assert_close(result[1], normalize(points[1]).float(), atol=1e-6, rtol=0)
    assert torch.equal(normalize_precisely(mixed[1]), result[1])
