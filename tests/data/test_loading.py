import pickle

import pytest
import torch

from pointpeft.data import DataError, PointCloudDataset, load_dataset, read_points
from pointpeft.data.detect import detect
from tests.data.conftest import write_folder


@pytest.fixture
def folder_root(tmp_path):
    return write_folder(tmp_path / "mine", {"train/a": 2, "train/b": 2, "test/a": 1})


@pytest.mark.parametrize(
    ("fixture", "layout", "axis", "count"),
    [
        ("hdf5_root", "modelnet40", "y", 7),
        ("text_root", "modelnet40", "y", 3),
        ("cache_root", "modelnet40", "y", 3),
        ("scan_root", "scanobjectnn", "y", 4),
        ("folder_root", "folder", "z", 4),
    ],
)
def test_the_layout_of_a_path_is_found_out(fixture, layout, axis, count, request):
    root = request.getfixturevalue(fixture)
    assert detect(root) == layout
    for source in (root, str(root), f"{layout}:{root}" if layout != "folder" else root):
        dataset = load_dataset(source)
        assert len(dataset) == count
        assert dataset.up_axis == axis
    assert load_dataset(root, "test").classes == dataset.classes
    assert load_dataset(root, up_axis="x").up_axis == "x"
    assert load_dataset(root, num_points=4)[0][0].shape == (4, 3)
    again = pickle.loads(pickle.dumps(dataset))  # for the workers of a data loader
    assert torch.equal(again[1][0], dataset[1][0])


def test_a_csv_file_is_known_by_its_name(folder_root):
    (folder_root / "list.csv").write_text("train/a/00.npy,a\ntrain/b/00.npy,b\n")
    assert detect(folder_root / "list.csv") == "csv"
    assert load_dataset(folder_root / "list.csv").classes == ("a", "b")


@pytest.mark.parametrize(("variant", "first"), [("obj_bg", 0), ("obj_only", 1), ("pb_t50_rs", 2)])
def test_a_variant_of_scanobjectnn_follows_the_path(scan_root, variant, first):
    assert load_dataset(f"scanobjectnn:{scan_root}:{variant}").labels[0] == first


def test_a_colon_in_a_path_is_no_variant(scan_root, tmp_path):
    odd = tmp_path / "a:b"
    odd.mkdir()
    scan_root.rename(odd / "scans")
    assert len(load_dataset(f"scanobjectnn:{odd / 'scans'}")) == 4


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere", "nowhere: no such file or folder; a data set is a folder"),
        ("shapenet:nowhere", "shapenet:nowhere: no such file"),
        ("", "empty name"),
        ("modelnet40:", "given as modelnet40:PATH"),
        ("modelnet40:nowhere", "nowhere: no such folder"),
        ("scanobjectnn:nowhere:obj_bg", "nowhere: no such folder"),
        ("scanobjectnn:{root}:hard", "variant must be one of obj_bg, obj_only, pb_t50_rs, got 'hard'"),
        ("{root}/train/a/00.npy", "one cloud without a label"),
        ("{root}/odd.zip", "a file of kind '.zip'"),
    ],
)
def test_a_source_that_is_not_there_is_refused(folder_root, source, words):
    (folder_root / "odd.zip").write_text("x")
    with pytest.raises(DataError, match=words):
        load_dataset(source.format(root=folder_root))


LONG = "x" * 5000  # for any file system


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.csv", f"{LONG}\n"),
        ("list.csv", f"{LONG},class\n1,2\n"),
        ("list.csv", f"{LONG},a\n"),
        ("train_files.txt", f"{LONG}.h5\n"),
    ],
)
def test_a_list_of_names_too_long_for_a_file_is_refused(name, content, tmp_path):
    (tmp_path / "shape_names.txt").write_text("a\n")
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=r"list\.csv: |x: |\.h5: no such file"):
        load_dataset(tmp_path / name if name == "list.csv" else tmp_path)


@pytest.mark.parametrize("form", ["{}", "modelnet40:{}", "scanobjectnn:{}:obj_bg", "few_shot:{}:2way1shot:0"])
@pytest.mark.parametrize("name", [LONG, "a\0b"])
def test_a_name_that_no_file_can_have_is_refused(form, name):
    with pytest.raises(DataError, match="no such f"):
        load_dataset(form.format(name))
    with pytest.raises(DataError, match="no such file"):
        read_points(f"{name}.npy")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"split": "val"}, "split must be"),
        ({"num_points": 0}, "num_points must be"),
        ({"up_axis": "up"}, "up_axis must be"),
    ],
)
def test_bad_arguments_are_refused(folder_root, arguments, words):
    with pytest.raises(ValueError, match=words):
        load_dataset(folder_root, **arguments)


@pytest.mark.parametrize("source", [None, "furniture"])
def test_the_embedded_data_set_is_the_default(source, monkeypatch):
    parts = {"train": 3, "test": 2}
    monkeypatch.setattr(
        "pointpeft.data.sets.furniture.load",
        lambda split: PointCloudDataset(torch.rand(parts[split], 9, 3), [0] * parts[split], ("a",), up_axis="y"),
    )
    assert len(load_dataset(source)) == 3
    assert load_dataset(source).up_axis == "y"
    few = load_dataset(source, "test", num_points=4, up_axis="z")
    assert (len(few), few.up_axis, few[1][0].shape) == (2, "z", (4, 3))
    assert pickle.loads(pickle.dumps(few)).names == few.names
