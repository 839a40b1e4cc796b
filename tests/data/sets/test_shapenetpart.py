import json

import numpy as np
import pytest
import torch

from pointpeft.data import DataError
from pointpeft.data.part_loading import load_segments

FOLDERS = {"Airplane": "02691156", "Mug": "03797390", "Table": "04379243"}
FIRST_PART = {"Airplane": 0, "Mug": 36, "Table": 47}


def write(root, per_split=2, points=20):
    random = np.random.default_rng(0)
    (root / "train_test_split").mkdir(parents=True)
    (root / "synsetoffset2category.txt").write_text("".join(f"{name}\t{folder}\n" for name, folder in FOLDERS.items()))
    for split in ("train", "val", "test"):
        names = []
        for name, folder in FOLDERS.items():
            (root / folder).mkdir(exist_ok=True)
            for i in range(per_split):
                table = random.normal(size=(points, 7))
                table[:, 6] = FIRST_PART[name] + random.integers(0, 2, points)
                np.savetxt(root / folder / f"{split}{i}.txt", table)
                names.append(f"shape_data/{folder}/{split}{i}")
        (root / "train_test_split" / f"shuffled_{split}_file_list.json").write_text(json.dumps(names))
    return root


def test_train_is_the_published_train_and_val(tmp_path):
    root = write(tmp_path / "shapenetpart")
    train, test = load_segments(root), load_segments(root, "test")
    assert (len(train), len(test)) == (12, 6)
    assert not {*train.names} & {*test.names}
    assert (len(train.classes), len(train.parts)) == (16, 50)
    assert train.parts[36:38] == ("Mug/0", "Mug/1")
    assert [train.classes[i] for i in test.labels.unique()] == ["Airplane", "Mug", "Table"]
    points, category, parts = test[2]
    assert train.classes[category] == "Mug"
    assert set(parts.tolist()) <= {36, 37}
    table = np.loadtxt(root / test.names[2])
    centred = table[:, :3] - table[:, :3].mean(0)
    expected = torch.from_numpy(centred / np.linalg.norm(centred, axis=1).max()).float()
    torch.testing.assert_close(points, expected, rtol=1e-4, atol=1e-6)


def test_the_published_part_numbers(tmp_path):
    parts_of = load_segments(write(tmp_path / "s")).parts_of
    assert parts_of[0] == (0, 1, 2, 3)
    assert parts_of[10] == tuple(range(30, 36))  # motorbike
    assert parts_of[15] == (47, 48, 49)


def test_what_is_missing_or_wrong_is_named(tmp_path):
    root = write(tmp_path / "s")
    cloud = root / FOLDERS["Mug"] / "test0.txt"
    table = np.loadtxt(cloud)
    np.savetxt(cloud, np.where(np.arange(7) == 6, 3.0, table))
    with pytest.raises(DataError, match="part 3 is none of its category 'Mug', which has 36, 37"):
        load_segments(root, "test")[2]
    np.savetxt(cloud, table[:, :6])
    with pytest.raises(DataError, match=r"test0\.txt: must have 7 columns"):
        load_segments(root, "test")[2]
    cloud.unlink()
    with pytest.raises(DataError, match="no such file; 1 of 6 test clouds are missing"):
        load_segments(root, "test")
    (root / "train_test_split" / "shuffled_test_file_list.json").unlink()
    with pytest.raises(DataError, match=r"shuffled_test_file_list\.json: no such file"):
        load_segments(root, "test")
