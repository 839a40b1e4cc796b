import io
import json
import tarfile

import h5py
import numpy as np
import pytest
import torch

from pointpeft.data import DataError, check, load_dataset, normalize
from pointpeft.data.detect import detect
from pointpeft.data.formats import tar as tar_module
from tests.data.conftest import clouds, truncate, write_folder, write_h5

LABELS = ["chair", "lamp", "chair", "lamp", "lamp", "chair"]


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def write_tar(path, members, mode="w", **changes):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as shard:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in changes.items():
                setattr(info, key, value)
            shard.addfile(info, io.BytesIO(content))
    return path


def samples(data, labels, first=0):
    return {
        f"{first + i:04}.{kind}": content
        for i, (cloud, label) in enumerate(zip(data, labels, strict=True))
        for kind, content in (("npy", npy(cloud)), ("cls", str(label).encode()))
    }


@pytest.fixture
def tars(tmp_path):
    """Six training clouds in two shards, three test clouds in one; labels are names."""
    root, data = tmp_path / "shards", clouds(9)
    write_tar(root / "train-0.tar", samples(data[:4], LABELS[:4]))
    write_tar(root / "train-1.tar", samples(data[4:6], LABELS[4:], 4))
    write_tar(root / "test-0.tar", samples(data[6:], ["lamp", "chair", "lamp"], 6))
    return root


def test_tar_shards_are_a_data_set(tars):
    assert detect(tars) == "shards"
    train, test = load_dataset(tars), load_dataset(tars, "test")
    assert train.classes == test.classes == ("chair", "lamp")
    assert train.labels.tolist() == [0, 1, 0, 1, 1, 0]
    assert test.labels.tolist() == [1, 0, 1]
    assert train.names[4] == "train-1.tar/0004.npy"
    assert train.sizes == [24] * 6
    data = clouds(9)
    for i in range(6):
        torch.testing.assert_close(train[i][0], normalize(torch.from_numpy(data[i])))
    torch.testing.assert_close(test[2][0], normalize(torch.from_numpy(data[8])))
    assert load_dataset(tars, num_points=7)[0][0].shape == (7, 3)
    assert load_dataset(tars, num_points=7).sizes == [7] * 6
    report = check(tars)
    assert report.ok
    assert any("train: 6 clouds: chair 3, lamp 3" in line for line in report.lines)


def test_labels_may_be_numbers_json_or_of_a_list(tmp_path):
    data = clouds(3)
    members = samples(data[:1], [1]) | {
        "b.npy": npy(data[1]),
        "b.json": b'{"label": 0, "more": [1]}',
        "c.npy": npy(data[2]),
        "c.json": b"2",
        "c.jpg": b"picture",
        "notes.md": b"text",
    }
    shard = write_tar(tmp_path / "s" / "train.tar", members)
    write_tar(tmp_path / "s" / "test.tar", samples(data[:1], [3]))
    assert load_dataset(tmp_path / "s").labels.tolist() == [1, 0, 2]
    assert load_dataset(tmp_path / "s").classes == ("0", "1", "2", "3")
    (tmp_path / "s" / "classes.txt").write_text("a\nb\nc\nd\n")
    assert load_dataset(tmp_path / "s").classes == ("a", "b", "c", "d")
    (tmp_path / "s" / "classes.txt").write_text("a\nb\nc\n")
    with pytest.raises(DataError, match=r"test\.tar/0000\.npy: its label 3 is none of the 3 classes"):
        load_dataset(tmp_path / "s", "test")
    assert detect(shard) == "shards"


def test_other_kinds_of_clouds_are_read_and_counted_later(tmp_path):
    cloud = clouds(1)[0]
    text = "\n".join(" ".join(map(str, row)) for row in cloud.tolist()).encode()
    write_tar(tmp_path / "train.tar", {"a.xyz": text, "a.cls": b"x"})
    write_tar(tmp_path / "test.tar", {"a.xyz": text, "a.cls": b"x"})
    dataset = load_dataset(tmp_path)
    assert dataset.sizes is None
    torch.testing.assert_close(dataset[0][0], normalize(torch.from_numpy(cloud)))


def test_one_shard_sets_a_test_part_aside(tmp_path):
    shard = write_tar(tmp_path / "all.tar", samples(clouds(10), [0, 1] * 5))
    train, test = load_dataset(shard), load_dataset(shard, "test")
    assert (len(train), len(test)) == (8, 2)
    assert not set(train.names) & set(test.names)
    assert "no test split is given: 2 of 10 clouds" in train.notes[0]


@pytest.mark.parametrize("lazy", [False, True])
def test_hdf5_shards_below_folders(tmp_path, lazy):
    data = clouds(7)
    write_h5(tmp_path / "train" / "0.h5", data[:3], np.array([0, 2, 1]))
    write_h5(tmp_path / "train" / "1.h5", data[3:5, :20], np.array([2, 0]))
    write_h5(tmp_path / "test" / "0.h5", data[5:], np.array([1, 1]))
    assert detect(tmp_path) == "shards"
    train = load_dataset(tmp_path, lazy=lazy)
    assert train.classes == ("0", "1", "2")
    assert train.labels.tolist() == [0, 2, 1, 2, 0]
    assert train.sizes == [24, 24, 24, 20, 20]
    assert torch.equal(train[3][0], normalize(torch.from_numpy(data[3, :20])))
    with h5py.File(tmp_path / "train" / "0.h5", "a") as file:
        file["classes"] = [b"x", b"y", b"z"]
    assert load_dataset(tmp_path, lazy=lazy).classes == ("x", "y", "z")


def test_a_folder_of_classes_with_a_stray_shard_stays_one(tmp_path):
    root = write_folder(tmp_path / "mine", {"train/a": 2, "test/a": 1})
    write_tar(root / "backup.tar", {"a.npy": npy(clouds(1)[0])})
    write_folder(root, {"other/a": 1})
    assert detect(root) == "folder"


@pytest.mark.parametrize("name", ["../out.npy", "/etc/out.npy", "a/../../out.npy", "C:\\out.npy", "..\\out.npy"])
def test_a_member_that_leads_out_of_the_shard_is_refused(tmp_path, name):
    write_tar(tmp_path / "train.tar", samples(clouds(1), [0]) | {name: npy(clouds(1)[0])})
    with pytest.raises(DataError, match=r"train\.tar: refused: the member .* leads out of the shard"):
        load_dataset(tmp_path / "train.tar")


def test_a_link_is_refused(tmp_path):
    write_tar(tmp_path / "train.tar", {"a.npy": b""}, type=tarfile.SYMTYPE, linkname="/etc/passwd")
    with pytest.raises(DataError, match="is a link or no plain file"):
        load_dataset(tmp_path / "train.tar")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.npy": npy(clouds(1)[0])}, r"1 of 1 clouds have no label beside them .* the first is a\.npy"),
        ({"a.npy": npy(clouds(1)[0]), "a.json": b'{"x": 1}'}, "have no label beside them"),
        ({"a.npy": npy(clouds(1)[0]), "a.json": b"{"}, r"a\.json: is no label"),
        ({"a.npy": npy(clouds(1)[0]), "a.cls": b"\xff"}, r"a\.cls: is no label"),
        ({"a.npy": npy(clouds(1)[0]), "a.json": b"1.5"}, "a label is a number or a name"),
        ({"a.npy": npy(clouds(1)[0]), "a.cls": b"-1"}, "its label -1 is none of"),
        ({"a.npy": npy(clouds(1)[0]), "a.xyz": b"1 2 3", "a.cls": b"0"}, "are two clouds of one key"),
        ({"a.npy": npy(clouds(1)[0]), "a.cls": b"0", "b.npy": npy(clouds(1)[0]), "b.cls": b"x"}, "others names"),
        ({"a.cls": b"0"}, "have no clouds"),
    ],
)
def test_a_wrong_shard_is_refused(tmp_path, members, message):
    with pytest.raises(DataError, match=message):
        load_dataset(write_tar(tmp_path / "s.tar", members))


def test_compressed_broken_cut_off_and_mixed_shards(tars, tmp_path, monkeypatch):
    packed = write_tar(tmp_path / "s.tar.gz", samples(clouds(1), [0]), "w:gz")
    with pytest.raises(DataError, match=r"s\.tar\.gz: is compressed.*gunzip"):
        load_dataset(packed)
    (tmp_path / "no.tar").write_bytes(b"no tar" * 500)
    with pytest.raises(DataError, match=r"no\.tar: cannot be read"):
        load_dataset(tmp_path / "no.tar")
    truncate(tars / "train-1.tar", 0.06)
    with pytest.raises(DataError, match=r"train-1\.tar: cannot be read"):
        load_dataset(tars)
    (tars / "train-1.tar").rename(tars / "more.tar")
    with pytest.raises(DataError, match=r"more\.tar: is named neither for train nor for test"):
        load_dataset(tars)
    (tars / "more.tar").unlink()
    write_h5(tars / "train-1.h5", clouds(1), np.array([0]))
    with pytest.raises(DataError, match=r"mixes|numbers"):
        load_dataset(tars)
    monkeypatch.setattr(tar_module, "LARGEST_MEMBER", 100)
    with pytest.raises(DataError, match="at most 100 are read"):
        tar_module.list_tar(tars / "test-0.tar")


def test_a_broken_cloud_is_named(tmp_path):
    bad = clouds(1)[0]
    bad[3] = np.inf
    shard = write_tar(tmp_path / "s.tar", samples([clouds(1)[0], bad], [0, 0]) | {"z.npy": b"\x93NUMPY", "z.cls": b"0"})
    dataset = load_dataset(shard)
    assert dataset.sizes is None
    named = {name: i for i, name in enumerate(dataset.names)}
    with pytest.raises(DataError, match=r"s\.tar/0001\.npy: 1 of 24 points are not finite"):
        dataset[named["s.tar/0001.npy"]]
    report = check(shard)
    assert not report.ok
    assert sum(line.startswith("BROKEN s.tar/") for line in report.lines) == 2


def test_labels_in_json_are_read_once(tmp_path):
    write_tar(
        tmp_path / "s.tar", {"a.npy": npy(clouds(1)[0]), "a.cls": b"7", "a.json": json.dumps({"label": 1}).encode()}
    )
    assert tar_module.list_tar(tmp_path / "s.tar")[0].label == 7
