"""Tiny data sets in the published layouts, written by the tests."""

import pickle

import h5py
import numpy as np
import pytest


def clouds(count, points=24, columns=3, seed=0):
    return 5 + 3 * np.random.default_rng(seed).normal(size=(count, points, columns)).astype(np.float32)


def write_h5(path, data, label, **others):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, value in {"data": data, "label": label, **others}.items():
            file[name] = value


def truncate(path, part=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])


def write_folder(root, sizes, points=24):
    """Sizes: "train/chair" -> how many clouds."""
    for seed, (name, count) in enumerate(sizes.items()):
        (root / name).mkdir(parents=True)
        for i, cloud in enumerate(clouds(count, points, seed=seed)):
            np.save(root / name / f"{i:02}.npy", cloud)
    return root


@pytest.fixture
def hdf5_root(tmp_path):
    """7 training clouds in two files and 3 test clouds, classes a, b, c."""
    root = tmp_path / "modelnet40_ply_hdf5_2048"
    data = clouds(10)
    write_h5(root / "ply_data_train0.h5", data[:4].astype(np.float16), np.array([[0], [1], [2], [1]], np.uint8))
    write_h5(root / "ply_data_train1.h5", data[4:7], np.array([2, 0, 1]), name=np.array([b"p", b"q", b"r"]))
    write_h5(root / "ply_data_test0.h5", data[7:], np.array([[1], [2], [0]], np.uint8))
    (root / "shape_names.txt").write_text("a\nb\nc\n")
    (root / "train_files.txt").write_text("".join(f"data/elsewhere/ply_data_train{i}.h5\n" for i in (0, 1)))
    (root / "test_files.txt").write_text("data/elsewhere/ply_data_test0.h5\n")
    return root


@pytest.fixture
def text_root(tmp_path):
    """modelnet40_normal_resampled: 3 training clouds and 1 test cloud."""
    root = tmp_path / "modelnet40_normal_resampled"
    names = ["chair_0001", "night_stand_0001", "chair_0002", "night_stand_0002"]
    for name, cloud in zip(names, clouds(4, columns=6), strict=True):
        path = root / name.rsplit("_", 1)[0] / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savetxt(path, cloud, fmt="%.6f", delimiter=",")
    (root / "modelnet40_shape_names.txt").write_text("chair\nnight_stand\n")
    (root / "modelnet40_train.txt").write_text("\n".join(names[:3]))
    (root / "modelnet40_test.txt").write_text(names[3] + "\n")
    return root


@pytest.fixture
def cache_root(tmp_path):
    """The cache alone, without the text files that it was made of."""
    root = tmp_path / "cached"
    root.mkdir()
    (root / "modelnet40_shape_names.txt").write_text("chair\nnight_stand\n")
    for split, labels in (("train", [0, 1, 1]), ("test", [1])):
        content = [list(clouds(len(labels), columns=6)), [np.array([n], np.int32) for n in labels]]
        (root / f"modelnet40_{split}_8192pts_fps.dat").write_bytes(pickle.dumps(content))
    return root


@pytest.fixture
def scan_root(tmp_path):
    """ScanObjectNN in its three variants; the first label tells them apart."""
    root = tmp_path / "scans"
    for i, (folder, end) in enumerate(
        [("main_split", ""), ("main_split_nobg", ""), ("main_split", "_augmentedrot_scale75")]
    ):
        for part, count in (("training", 4), ("test", 2)):
            labels = np.array([i, 14, 3, 4][:count])
            write_h5(root / folder / f"{part}_objectdataset{end}.h5", clouds(count), labels, mask=np.zeros(count))
    return root
