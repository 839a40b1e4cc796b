import os

import numpy as np
import pytest
import torch

from pointpeft.data import DataError, normalize, split_validation
from pointpeft.data.sets import folder
from tests.data.conftest import clouds, write_folder


def test_train_and_test_levels_are_kept(tmp_path):
    sizes = {"train/b": 3, "train/a": 2, "test/a": 1, "test/b": 2}
    root = write_folder(tmp_path, sizes)
    train, test = folder.load(root, "train"), folder.load(root, "test")
    assert train.classes == test.classes == ("a", "b")
    assert train.names == ["train/a/00.npy", "train/a/01.npy", "train/b/00.npy", "train/b/01.npy", "train/b/02.npy"]
    assert train.labels.tolist() == [0, 0, 1, 1, 1]
    assert test.labels.tolist() == [0, 1, 1]
    assert train.notes == ()
    assert train.up_axis == "z"
    assert train.normalized
    torch.testing.assert_close(train[3][0], normalize(torch.from_numpy(clouds(3, seed=0))[1]), atol=1e-6, rtol=0)


def test_levels_inside_the_classes_are_kept(tmp_path):
    root = write_folder(tmp_path, {"a/train": 2, "a/test": 1, "b/train": 1, "b/test": 1})
    train, test = folder.load(root, "train"), folder.load(root, "test")
    assert train.names == ["a/train/00.npy", "a/train/01.npy", "b/train/00.npy"]
    assert test.labels.tolist() == [0, 1]


def test_without_levels_a_stratified_fifth_is_drawn_with_a_note(tmp_path):
    root = write_folder(tmp_path, {"a": 10, "b": 5, "c": 1})
    train, test = folder.load(root, "train"), folder.load(root, "test")
    assert test.labels.bincount(minlength=3).tolist() == [2, 1, 0]
    assert train.labels.bincount(minlength=3).tolist() == [8, 4, 1]
    assert not set(train.names) & set(test.names)
    assert test.names == folder.load(root, "test").names
    labels = torch.tensor([0] * 10 + [1] * 5 + [2])
    assert test.labels.tolist() == labels[split_validation(labels, 0.2, 0)[1]].tolist()
    assert "3 of 16 clouds were drawn" in test.notes[0]
    assert "none of c" in test.notes[0]
    assert train.notes == test.notes == train.subset([0]).notes


def test_a_train_level_alone_is_divided(tmp_path):
    root = write_folder(tmp_path, {"train/a": 5, "train/b": 5})
    assert len(folder.load(root, "test")) == 2
    assert len(folder.load(root, "train")) == 8


def test_a_test_level_alone_serves_evaluation(tmp_path):
    root = write_folder(tmp_path, {"test/b": 2, "test/a": 1})
    assert folder.load(root, "test").classes == ("a", "b")
    with pytest.raises(DataError, match="has no train clouds"):
        folder.load(root, "train")


def test_other_files_hidden_files_and_deeper_folders(tmp_path):
    root = write_folder(tmp_path, {"train/a": 1, "train/b/deep": 1, "test/a": 1, "val/a": 1})
    (root / "README.md").write_text("hello")
    (root / "train/a/notes.json").write_text("{}")
    (root / "train/a/._00.npy").write_text("left by another system")
    (root / "train/.cache").mkdir()
    train = folder.load(root, "train")
    assert train.names == ["train/a/00.npy", "train/b/deep/00.npy"]
    assert train.notes == ("val/ is not used: it lies beside test/ and train/",) or train.notes == (
        "val/ is not used: it lies beside train/ and test/",
    )


def test_num_points_cuts_clouds_and_samples_surfaces(tmp_path):
    root = write_folder(tmp_path, {"a": 2})
    (root / "a" / "t.off").write_text("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n")
    train = folder.load(root, "train", num_points=10)
    assert [len(train[i][0]) for i in range(len(train))] == [10] * len(train)
    assert sum(len(folder.load(root, s, num_points=30)) for s in ("train", "test")) == 3


def test_a_broken_cloud_is_named_when_it_is_read(tmp_path):
    root = write_folder(tmp_path, {"train/a": 2, "test/a": 1})
    np.save(root / "train/a/01.npy", np.full((5, 3), np.nan))
    train = folder.load(root, "train")
    assert train[0][0].shape == (24, 3)
    with pytest.raises(DataError, match=r"01\.npy: 5 of 5 points are not finite"):
        train[1]


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"train/a": 1, "test/a": 1, "test/rod": 1}, "classes only in the test split: rod"),
        ({"a/x": 1, "b/x": 1, "Train/x": 1}, "Train: holds folders of clouds, as a split does, but beside it are 2"),
        ({"a": 1, "Train/y": 1}, "Train: holds folders of clouds, as a split does, but beside it are 1"),
        ({"a/train": 1, "a/test": 1, "b": 1}, "b: has no train/ and test/"),
        ({"train": 2, "test/a": 1}, "00.npy: lies in no class"),
        ({".": 2}, "00.npy: lies in no class; clouds belong into a sub-folder per class"),
        ({}, "has no sub-folders with clouds"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(tmp_path, sizes, words):
    sizes = dict(sizes)
    loose = sizes.pop(".", 0)
    write_folder(tmp_path / "root", sizes)
    (tmp_path / "root").mkdir(exist_ok=True)
    for i in range(loose):
        np.save(tmp_path / "root" / f"{i:02}.npy", clouds(1)[0])
    for split in ("train", "test"):
        with pytest.raises(DataError, match=words):
            folder.load(tmp_path / "root", split)


@pytest.fixture
def listed(tmp_path):
    """Gives a function that writes a list beside four clouds."""
    root = write_folder(tmp_path / "set", {"x": 4})
    np.save(tmp_path / "secret.npy", clouds(1)[0])

    def write(text):
        (root / "list.csv").write_text(text, "utf-8")
        return root / "list.csv"

    return write


@pytest.mark.parametrize(
    "text",
    [
        "x/00.npy,b,train\nx/01.npy,a,train\nx/02.npy,b,test\n",
        "\ufeffpath,label,split\r\nx/00.npy,b,train\r\n\r\nx/01.npy,a,training\r\nx/02.npy,b,test\r\n",
        'Split, Label, Path\ntrain, b, "x/00.npy"\nTrain, a, ./x/../x/01.npy\ntest, b, x/02.npy\nval, a, x/03.npy\n',
    ],
)
def test_a_csv_file_gives_paths_labels_and_splits(listed, text):
    path = listed(text)
    train, test = folder.load(path, "train"), folder.load(path, "test")
    assert train.classes == ("a", "b")
    assert train.names == ["x/00.npy", "x/01.npy"]
    assert train.labels.tolist() == [1, 0]
    assert test.names == ["x/02.npy"]
    torch.testing.assert_close(test[0][0], normalize(torch.from_numpy(clouds(4))[2]), atol=1e-6, rtol=0)
    assert train.notes == (("1 clouds of split val are not used",) if "val" in text else ())


@pytest.mark.parametrize(
    "text",
    [
        "path;label\nx/00.npy;a\nx/01.npy;b\nx/02.npy;a\n",
        "sep=;\nx/00.npy;a\nx/01.npy;b\nx/02.npy;a\n",
        "path\tlabel\nx/00.npy\ta\nx/01.npy\tb\nx/02.npy\ta\n",
        "# made by hand\npath,label\n# more\nx/00.npy,a\nx/01.npy,b\nx/02.npy,a\n",
        "path,label\r\nx\\00.npy,a\r\nx\\01.npy,b\r\nx\\02.npy,a\r\n",
        "{root}/set/x/00.npy,a\n{root}/set/x/01.npy,b\n{root}/set/x/02.npy,a\n",
        "label,path,size\na,x/00.npy,9\nb,x/01.npy,9\na,x/02.npy,9\n",
    ],
)
def test_a_csv_file_may_be_written_otherwise(listed, tmp_path, text):
    listing = folder.scan(listed(text.format(root=tmp_path)))
    assert listing.problems == ()
    found = sorted((path.name, listing.classes[label]) for part in listing.splits.values() for path, label in part)
    assert found == [("00.npy", "a"), ("01.npy", "b"), ("02.npy", "a")]


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252", "utf-8"])
def test_class_names_may_be_in_any_encoding(listed, encoding):
    path = listed("")
    path.write_bytes("path;label\nx/00.npy;stühle\nx/01.npy;stühle\n".encode(encoding))
    assert folder.scan(path).classes == ("stühle",)


def test_documents_and_folders_of_systems_are_no_classes_and_no_clouds(tmp_path):
    root = write_folder(tmp_path, {"a": 6, "b": 6, "__MACOSX/a": 1, "empty": 0})
    (root / "README.txt").write_text("Scanned by hand in 2024.")
    (root / "a" / "License.txt").write_text("Free.\n\n1. Copy it\n")
    (root / "b" / "readme_scan.txt").write_text("0.5 0.5 0.5\n1 2 3\n")  # points, whatever its name
    (root / "a" / "scan.glb").write_bytes(b"glTF")
    (root / "b" / "old.e57").write_bytes(b"ASTM-E57")
    listing = folder.scan(root)
    assert listing.problems == ()
    assert listing.classes == ("a", "b")
    assert sum(len(part) for part in listing.splits.values()) == 13
    notes = "\n".join(folder.load(root, "train").notes)
    assert "empty/ is empty and no class" in notes
    # What cannot be read is said wherever the notes of a data set are, not by its check alone.
    assert "4 files are not read as clouds and passed over (2 .txt, 1 .glb, 1 .e57), the first is README.txt" in notes


@pytest.mark.parametrize("name", ["Train", "test", "TESTING"])
def test_a_class_named_as_a_split_is_a_class_among_others(tmp_path, name):
    root = write_folder(tmp_path, {f"class{i:02}": 3 for i in range(5)} | {name: 3})
    listing = folder.scan(root)
    assert listing.problems == ()
    assert len(listing.classes) == 6
    assert name in listing.classes


@pytest.mark.parametrize("name", ["Train", "test"])
def test_a_class_named_as_a_split_is_a_class_above_splits(tmp_path, name):
    sizes = {f"{kind}/{split}": 2 for kind in ("Boat", "Car", name) for split in ("train", "test")}
    root = write_folder(tmp_path, sizes)
    listing = folder.scan(root)
    assert (listing.problems, listing.notes) == ((), ())
    assert listing.classes == tuple(sorted(("Boat", "Car", name)))
    assert [len(listing.splits[split]) for split in ("train", "test")] == [6, 6]


def test_a_csv_file_without_splits_is_divided(listed):
    path = listed("path,label\nx/00.npy,a\nx/01.npy,a\nx/02.npy,a\nx/03.npy,a\n")
    assert len(folder.load(path, "train")) == 3
    assert "1 of 4 clouds were drawn" in folder.load(path, "test").notes[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("../secret.npy,a\n", r"line 1: \.\./secret\.npy lies outside"),
        ("x/../../secret.npy,a\n", "lies outside"),
        ("{root}/secret.npy,a\n", "lies outside"),
        ("C:\\x\\00.npy,a\n", "lies outside the folder of the list: paths must be relative"),
        ("\\..\\secret.npy,a\n", "lies outside"),
        ("filename,class\nx/00.npy,a\n", r"first line names filename, class: its columns must be path,label"),
        ("file;label\nx/00.npy;a\n", r"first line names file, label: its columns must be path,label"),
        ("x,y,z\n1,2,3\n", "is a table of points, not a list"),
        ("1.5,2,3\n1,2,3\n", "is a table of points, not a list"),
        ("x/00.npy a\nx/01.npy a\n", "its lines have one column, 'x/00.npy a'"),
        ("x/00.npy,0.0\nx/01.npy,0.37\n", "got 0.37: 2 different numbers for 2 clouds are measurements"),
        ("a.npy,a\nb.npy,a\nc.npy,a\nd.npy,b\n", "line 1: a.npy: no such file; so are all 4 lines"),
        ("link.npy,a\n", "link.npy lies outside"),
        ("x/00.npy,a\nx/09.npy,a\n", r"line 2: x/09\.npy: no such file"),
        ("x/00.npy,a\nx/./00.npy,b\n", "line 2: .* is already in line 1"),
        ("x/00.npy\n", "line 1: has no label"),
        ("x/00.npy,a,train\nx/01.npy,a,\n", "line 2: split must be train, test or val, got ''"),
        ("x/00.npy,a,holdout\n", "got 'holdout'"),
        ("x/00.npy,a,train\nx/01.npy,rod,test\n", "classes only in the test split: rod"),
        ("path,class\nx/00.npy,a\n", r"columns must be path,label\[,split\]"),
        ("", "lists no clouds"),
        ("path,label\n", "lists no clouds"),
        ('"x/00.npy,a\n', "is not a CSV file"),
    ],
)
def test_a_csv_file_that_cannot_be_used_is_refused(listed, tmp_path, text, words):
    path = listed(text.format(root=tmp_path))
    os.symlink(tmp_path / "secret.npy", tmp_path / "set" / "link.npy")
    with pytest.raises(DataError, match=words):
        folder.load(path, "train")


def test_a_csv_file_that_is_no_text_is_refused(listed, tmp_path):
    path = listed("")
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(DataError, match="is not a CSV file"):
        folder.load(path, "train")


def test_all_problems_are_counted(listed):
    with pytest.raises(DataError, match=r"and 2 more problems"):
        folder.load(listed("no.npy,a\nnone.npy,a\nx/00.npy\n"), "train")
