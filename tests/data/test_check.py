import numpy as np
import pytest

from pointpeft.data import check
from tests.data.conftest import clouds, truncate, write_folder, write_h5


def broken(report):
    return [line for line in report.lines if line.startswith("BROKEN")]


@pytest.mark.parametrize(
    ("fixture", "words"),
    [
        (
            "hdf5_root",
            ["ModelNet40 (hdf5), up axis y", "ply_data_train1.h5: 3 clouds of 24 points", "train: 7 clouds: a 2"],
        ),
        ("text_root", ["ModelNet40 (text)", "train: 3 clouds: chair 2, night_stand 1", "points per cloud: 24"]),
        ("cache_root", ["ModelNet40 (cache)", "test: 1 clouds: chair 0, night_stand 1"]),
        ("scan_root", ["ScanObjectNN obj_only", "pb_t50_rs test: 2 clouds: bag 0, bin 0, box 1"]),
    ],
)
def test_a_whole_data_set_is_usable(fixture, words, request):
    root = request.getfixturevalue(fixture)
    report = check(root)
    text = "\n".join(report.lines)
    assert report.ok, text
    assert report.lines[-1] == "usable"
    for word in words:
        assert word in text
    assert check(str(root)) == report


def test_every_broken_file_of_a_folder_is_listed(tmp_path):
    root = write_folder(tmp_path, {"train/a": 4, "train/b": 2, "train/none": 0, "test/a": 1, "test/rod": 1})
    (root / "train/a/00.npy").write_bytes(b"")
    np.save(root / "train/a/01.npy", np.full((9, 3), np.nan))
    np.save(root / "train/a/02.npy", np.ones((9, 3)))
    (root / "train/b/notes.json").write_text("{}")
    (root / "train/none/scan.e57").write_text("of a kind that is not read")
    truncate(root / "test/a/00.npy")
    report = check(root)
    assert not report.ok
    problems = broken(report)
    for words in ("none: has no clouds", "only in the test split: rod", "00.npy: the file is empty", "01.npy: 9 of 9",
                  "02.npy: all its 9 points are one", "test/a/00.npy: cannot be read"):  # fmt: skip
        assert sum(words in line for line in problems) == 1, words
    assert len(problems) == 6
    assert report.lines[-1] == "6 problems: not usable as it is"
    assert any(
        "2 files of other kinds are passed over, the first is train/b/notes.json" in line for line in report.lines
    )
    assert any("train: 6 clouds: a 4, b 2" in line for line in report.lines)


def test_a_drawn_test_part_and_small_clouds_are_noted(tmp_path):
    root = write_folder(tmp_path, {"a": 5, "b": 5}, points=40)
    np.save(root / "a/00.npy", clouds(1, points=3)[0])
    report = check(root)
    assert report.ok
    text = "\n".join(report.lines)
    assert "2 of 10 clouds were drawn" in text
    assert "points per cloud: 3 (a/00.npy) to 40" in text
    assert "1 clouds have fewer than 32 points" in text


def test_every_broken_h5_is_listed(hdf5_root):
    truncate(hdf5_root / "ply_data_train0.h5")
    truncate(hdf5_root / "ply_data_test0.h5")
    report = check(f"modelnet40:{hdf5_root}")
    assert [name for name in ("train0", "train1", "test0") if any(name in line for line in broken(report))] == [
        "train0",
        "test0",
    ]


def test_h5_files_of_different_sizes_do_not_go_together(hdf5_root):
    write_h5(hdf5_root / "ply_data_train1.h5", clouds(3, points=9), np.zeros(3, np.int64))
    assert any("different numbers of points" in line for line in broken(check(hdf5_root)))


def test_both_lists_of_the_text_form_are_looked_at(text_root):
    (text_root / "modelnet40_train.txt").unlink()
    (text_root / "night_stand/night_stand_0002.txt").write_text("1,2\n")
    problems = broken(check(text_root))
    assert len(problems) == 2
    assert "modelnet40_train.txt: no such file" in problems[0]
    assert "night_stand_0002.txt" in problems[1]


def test_a_variant_that_is_half_there_is_broken_and_a_chosen_one_is_looked_at_alone(scan_root):
    (scan_root / "main_split" / "test_objectdataset.h5").unlink()
    assert not check(scan_root).ok
    assert not check(f"scanobjectnn:{scan_root}:obj_bg").ok
    assert check(f"scanobjectnn:{scan_root}:obj_only").ok


def test_what_training_would_refuse_is_no_usable_data_set(tmp_path):
    root = write_folder(tmp_path / "one", {"a": 1, "b": 1})  # no cloud can be set aside for testing
    assert any("has no test clouds" in line for line in broken(check(root)))
    (root / "list.csv").write_text("path,label\na/00.npy,0.25\nb/00.npy,0.75\n")
    assert any("are measurements" in line for line in broken(check(root / "list.csv")))


def test_a_csv_file_is_checked(tmp_path):
    write_folder(tmp_path, {"x": 2})
    path = tmp_path / "list.csv"
    path.write_text("x/00.npy,a,train\nx/01.npy,a,test\n")
    assert check(path).ok
    path.write_text("x/00.npy,a,train\nx/01.npy,a,tset\n../x.npy,a,train\n")
    assert len(broken(check(path))) == 2


@pytest.mark.parametrize("source", ["nowhere", "", "modelnet40:nowhere"])
def test_nothing_there_is_a_report_and_no_exception(source):
    report = check(source)
    assert not report.ok
    assert len(broken(report)) == 1
