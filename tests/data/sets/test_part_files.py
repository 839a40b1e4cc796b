import pickle

import h5py
import numpy as np
import pytest
import torch

from pointpeft.data import DataError
from pointpeft.data.part_loading import load_segments


def arrays(clouds=10, points=30, seed=0):
    random = np.random.default_rng(seed)
    category = np.arange(clouds) % 2
    return {
        "xyz": random.normal(size=(clouds, points, 3)).astype(np.float32),
        "label": (random.integers(0, 2, (clouds, points)) + 2 * category[:, None]).astype(np.int16),
        "category": category,
    }


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, **content)
    else:
        with h5py.File(path, "w") as file:
            for key, value in content.items():
                file[key] = value
    return path


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_a_file_of_many_clouds(tmp_path, suffix):
    content = arrays()
    path = write(tmp_path / f"clouds{suffix}", content)
    train, test = load_segments(path), load_segments(path, "test")
    assert (len(train), len(test)) == (8, 2)
    assert "has no test split" in train.notes[0]
    assert train.parts_of == ((0, 1), (2, 3))
    seen = torch.cat([part[i][0] for part in (train, test) for i in range(len(part))])
    assert len(seen) == 300
    points, category, parts = train[0]
    row = int(train.names[0].split("[")[1][:-1])
    assert category == content["category"][row]
    assert torch.equal(parts, torch.from_numpy(content["label"][row].astype(np.int64)))
    assert points.norm(dim=1).max() == pytest.approx(1)
    assert points.mean(0).abs().max() < 1e-6


def test_parts_beside_a_category_per_cloud_and_names(tmp_path):
    content = arrays()
    path = write(
        tmp_path / "psb.h5",
        {
            "data": content["xyz"],
            "seg": content["label"],
            "label": content["category"],
            "classes": np.array([b"cup", b"table"]),
            "part_names": np.array([b"handle", b"body", b"leg", b"top"]),
            "split": np.array([b"train"] * 7 + [b"test"] * 3),
            "name": np.array([b"c%d" % i for i in range(10)]),
        },
    )
    test = load_segments(path, "test", up_axis="z")
    assert test.names == ["c7", "c8", "c9"]
    assert (test.classes, test.parts[3], test.up_axis, test.notes) == (("cup", "table"), "top", "z", ())


def test_a_folder_of_single_clouds_below_train_and_test_and_categories(tmp_path):
    content = arrays()
    for i in range(10):
        place = tmp_path / ("test" if i > 7 else "train") / ("cup", "table")[i % 2] / f"{i}.npz"
        write(place, {"xyz": content["xyz"][i], "label": content["label"][i]})
    train, test = load_segments(tmp_path), load_segments(tmp_path, "test")
    assert (len(train), len(test), train.classes) == (8, 2, ("cup", "table"))
    assert test.labels.tolist() == [0, 1]


def test_files_named_for_the_parts(tmp_path):
    write(tmp_path / "ply_data_train0.h5", arrays(4))
    write(tmp_path / "ply_data_val0.h5", arrays(2))
    write(tmp_path / "ply_data_test0.h5", arrays(3))
    assert (len(load_segments(tmp_path)), len(load_segments(tmp_path, "test"))) == (6, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"xyz": None}, "has none of xyz, data, points, only category, label"),
        ({"label": None}, r"needs a part number per point, \[10, 30\]"),
        ({"label": np.zeros((10, 29), int)}, r"has label \[10, 29\]"),
        ({"label": np.full((10, 30), -1)}, "label must be at least 0 and below 10000, got -1"),
        ({"label": np.full((10, 30), 0.5)}, "label must be whole numbers"),
        ({"xyz": np.full((10, 30, 3), np.nan)}, "10 clouds have points that are not finite"),
        ({"part_names": np.array([b"one"])}, "has 1 part_names, but a point of part 3"),
        ({"split": np.array([b"dev"] * 10)}, "split must name train or test"),
    ],
)
def test_wrong_content_is_named(tmp_path, change, message):
    content = {key: value for key, value in {**arrays(), **change}.items() if value is not None}
    path = write(tmp_path / "clouds.h5", content)
    with pytest.raises(DataError, match=message) as error:
        load_segments(path)
    assert "clouds.h5" in str(error.value)


def same(first, second):
    for name in ("names", "classes", "parts", "parts_of"):
        assert getattr(first, name) == getattr(second, name)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one[0], other[0])
        assert one[1] == other[1]
        assert torch.equal(one[2], other[2])


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_clouds_left_on_disk_are_the_same(tmp_path, suffix):
    content = arrays()
    write(tmp_path / "many" / f"train{suffix}", arrays(300, 5))
    write(tmp_path / "many" / f"test{suffix}", content)
    for i in range(10):
        place = tmp_path / "single" / ("test" if i > 7 else "train") / ("cup", "table")[i % 2] / f"{i}{suffix}"
        write(place, {"xyz": content["xyz"][i], "label": content["label"][i]})
    for folder in ("many", "single"):
        for split in ("train", "test"):
            lazy = load_segments(tmp_path / folder, split, lazy=True)
            assert lazy.sizes == [len(points) for points, _, _ in lazy]
            same(load_segments(tmp_path / folder, split), pickle.loads(pickle.dumps(lazy)))
            held = "NumPy files of many clouds are in memory" in str(lazy.notes)
            assert held == ((folder, suffix) == ("many", ".npz"))


def test_what_is_left_on_disk_is_checked_as_it_is_read(tmp_path):
    content = arrays()
    content["xyz"][3, 0] = np.inf
    path = write(tmp_path / "clouds.h5", content | {"split": np.array([b"train"] * 9 + [b"test"])})
    clouds = load_segments(path, lazy=True)
    assert len(clouds[2][0]) == 30
    with pytest.raises(DataError, match=r"clouds\.h5\[3\]: has points that are not finite"):
        clouds[3]


def test_a_file_without_clouds(tmp_path):
    path = write(tmp_path / "clouds.h5", {"xyz": np.zeros((0, 5, 3)), "label": np.zeros((0, 5), int)})
    with pytest.raises(DataError, match=r"clouds\.h5: has no clouds"):
        load_segments(path)


def test_a_broken_and_a_missing_file(tmp_path):
    (tmp_path / "broken.npz").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"broken\.npz: cannot be read"):
        load_segments(tmp_path / "broken.npz")
    with pytest.raises(DataError, match=r"no such file or folder; part segmentation needs ShapeNetPart"):
        load_segments(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"has no files \.h5"):
        load_segments(tmp_path / "empty")
