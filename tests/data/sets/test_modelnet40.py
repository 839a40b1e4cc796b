import os
import pickle

import numpy as np
import pytest
import torch

from pointpeft.data import DataError, load_dataset, normalize
from pointpeft.data.sets import modelnet40
from tests.data.conftest import clouds, truncate, write_h5


def test_hdf5_files_are_joined_in_order_and_normalised(hdf5_root):
    train, test = modelnet40.load(hdf5_root, "train"), modelnet40.load(hdf5_root, "test")
    assert train.classes == test.classes == ("a", "b", "c")
    assert train.labels.tolist() == [0, 1, 2, 1, 2, 0, 1]
    assert test.labels.tolist() == [1, 2, 0]
    assert train.names == [*(f"ply_data_train0.h5[{i}]" for i in range(4)), "p", "q", "r"]
    assert train.up_axis == "y"
    assert train.normalized
    data = torch.from_numpy(clouds(10))
    torch.testing.assert_close(train[2][0], normalize(data[2].half().float()))
    torch.testing.assert_close(train[5][0], normalize(data[5]))
    torch.testing.assert_close(test[2][0], normalize(data[9]))


@pytest.mark.parametrize("name", ["train_files.txt", "test_files.txt"])
def test_hdf5_files_are_found_without_their_list(hdf5_root, name):
    before = modelnet40.load(hdf5_root, "train")
    (hdf5_root / name).unlink()
    after = modelnet40.load(hdf5_root, "train")
    assert after.names == before.names
    assert len(modelnet40.load(hdf5_root, "test")) == 3


def test_files_beyond_the_ninth_are_in_the_order_of_their_numbers(tmp_path):
    (tmp_path / "shape_names.txt").write_text("\n".join("abcdefghijkl"))
    for i in range(12):
        write_h5(tmp_path / f"ply_data_train{i}.h5", clouds(1), np.array([i]))
    assert modelnet40.load(tmp_path, "train").labels.tolist() == list(range(12))


def test_num_points_keeps_the_same_places_of_all_clouds(hdf5_root, cache_root):
    for root in (hdf5_root, cache_root):
        few = modelnet40.load(root, "train", num_points=5)
        assert all(few[i][0].shape == (5, 3) for i in range(len(few)))
        assert modelnet40.load(root, "train", num_points=24)[0][0].shape == (24, 3)
        assert torch.equal(few[0][0], modelnet40.load(root, "train", num_points=5)[0][0])


def test_text_files_follow_their_lists(text_root):
    train = modelnet40.load(text_root, "train")
    assert train.classes == ("chair", "night_stand")
    assert train.labels.tolist() == [0, 1, 0]
    assert train.names == ["chair_0001", "night_stand_0001", "chair_0002"]
    cloud = torch.from_numpy(clouds(4, columns=6))[1, :, :3]
    torch.testing.assert_close(train[1][0], normalize(cloud), atol=1e-5, rtol=0)
    assert modelnet40.load(text_root, "test", num_points=7)[0][0].shape == (7, 3)


@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
def test_the_cache_gives_what_the_text_files_would(cache_root, protocol):
    path = cache_root / "modelnet40_train_8192pts_fps.dat"
    path.write_bytes(pickle.dumps(pickle.loads(path.read_bytes()), protocol))
    train = modelnet40.load(cache_root, "train")
    assert train.labels.tolist() == [0, 1, 1]
    torch.testing.assert_close(train[2][0], normalize(torch.from_numpy(clouds(3, columns=6))[2, :, :3]))
    assert modelnet40.load(cache_root, "test").labels.tolist() == [1]


def test_a_cache_of_numpy_1_is_read(cache_root):
    path = cache_root / "modelnet40_train_8192pts_fps.dat"
    content = path.read_bytes()
    assert b"numpy._core.multiarray" in content
    # A short string of protocol 4 is a length byte and the text.
    old = content.replace(b"\x16numpy._core.multiarray", b"\x15numpy.core.multiarray")
    start = old.index(b"\x95") + 1  # and the frame around all is one byte shorter
    frame = int.from_bytes(old[start : start + 8], "little") - old.count(b"\x15numpy.core.multiarray")
    path.write_bytes(old[:start] + frame.to_bytes(8, "little") + old[start + 8 :])
    assert modelnet40.load(cache_root, "train").labels.tolist() == [0, 1, 1]


class Runs:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("where", ["alone", "beside arrays", "in an object array"])
@pytest.mark.parametrize(
    ("function", "name"),
    [(os.mkdir, "mkdir"), (exec, "exec"), (getattr, "getattr"), (np.load, "load"), (np.fromfile, "fromfile")],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_malicious_cache_runs_nothing(cache_root, where, function, name):
    evil = Runs(function, str(cache_root / "made"))
    content = {"alone": evil, "beside arrays": [[clouds(1)[0]], [evil]], "in an object array": np.array([evil, 1])}[
        where
    ]
    (cache_root / "modelnet40_train_8192pts_fps.dat").write_bytes(pickle.dumps(content))
    reason = "it holds an array of 'O8'" if where == "in an object array" else f"it asks for .*{name}"
    with pytest.raises(DataError, match=rf"modelnet40_train_8192pts_fps\.dat: refused: {reason}"):
        modelnet40.load(cache_root, "train")
    assert not (cache_root / "made").exists()


@pytest.mark.parametrize(
    "text", [b"cos\nsystem\n(S'true'\ntR.", b"cnumpy\nload\n.", b"Pabc\n.", b"\x80\x04\x8c\x01aQ."]
)
def test_hand_written_pickles_are_refused(cache_root, text):
    (cache_root / "modelnet40_train_8192pts_fps.dat").write_bytes(text)
    with pytest.raises(DataError, match="refused"):
        modelnet40.load(cache_root, "train")


class Forged:
    """Rebuilt by a NumPy function with a state that NumPy itself would take over."""

    def __init__(self, function, arguments, state):
        self.parts = function, arguments, state

    def __reduce__(self):
        return self.parts


FLOAT, POINTERS = np.dtype("f4"), np.dtype("O")
RECORD = Forged(np.dtype, ("V8",), (4, "|", None, ("a",), {"a": (POINTERS, 0)}, 8, 1, 0, None))


@pytest.mark.parametrize(
    "evil",
    [
        Forged(np.ndarray, ((0,),), (1, (1,), POINTERS, False, [5])),
        Forged(np.ndarray, ((0,),), (1, (1,), RECORD, False, b"ABCDEFGH")),
        Forged(np.ndarray, ((0,),), (1, (1 << 40,), FLOAT, False, b"ABCD")),
        Forged(np.ndarray, ((0,),), (1, (-1, -1), FLOAT, False, b"ABCD" * 2)),
        Forged(np.ndarray, ((0,),), (1, (1,), FLOAT, False, [1.0])),
        Forged(np.ndarray, ((0,),), (1, (1,), "f4", False, b"ABCD")),
    ],
)
def test_an_array_of_a_forged_state_is_refused(cache_root, evil):
    (cache_root / "modelnet40_train_8192pts_fps.dat").write_bytes(pickle.dumps([[evil], [np.array([0])]]))
    with pytest.raises(DataError, match=r"refused|damaged"):
        modelnet40.load(cache_root, "train")


def test_arrays_of_any_order_and_byte_order_and_scalars_come_back(cache_root):
    cloud = clouds(1, columns=6)[0]
    kinds = [
        cloud,
        np.asfortranarray(cloud),
        cloud.astype(">f4"),
        cloud.astype("<f8"),
        cloud[::-1][::-1],
        cloud.astype("f2"),
    ]
    labels = [0, np.int64(1), np.array([1], ">i4"), np.array(0), (1,), np.uint8(1)]
    path = cache_root / "modelnet40_train_8192pts_fps.dat"
    for protocol in range(3, pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps([kinds, labels], protocol))
        train = modelnet40.load(cache_root, "train")
        assert train.labels.tolist() == [0, 1, 1, 0, 1, 1]
        for i in range(6):
            atol = 1e-6 if i < 5 else 1e-3
            torch.testing.assert_close(train[i][0], train[0][0], atol=atol, rtol=0)
    torch.testing.assert_close(train[0][0], normalize(torch.from_numpy(cloud[:, :3])))


ROW = [np.zeros((4, 6), np.float32)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (5, "list of clouds"),
        ([ROW], "list of clouds"),
        ([1, 2], "list of clouds"),
        ([ROW, []], "1 clouds have 0 labels"),
        ([ROW, [np.array([2])]], "labels must be 0 to 1, got 2"),
        ([ROW, [np.array([-1])]], "got -1"),
        ([ROW, [np.array([0.5])]], "whole number"),
        ([ROW, [np.array([0, 1])]], "whole number"),
        ([[ROW[0] * np.nan], [np.array([0])]], "cloud 0: 4 of 4 points are not finite"),
        ([[ROW[0][:, :2]], [np.array([0])]], "3 columns"),
        ([["abc"], [np.array([0])]], "numbers"),
        ([[], []], "no clouds"),
    ],
)
def test_a_cache_of_something_else_is_refused(cache_root, content, words):
    (cache_root / "modelnet40_train_8192pts_fps.dat").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=words):
        modelnet40.load(cache_root, "train")


@pytest.mark.parametrize("part", [0, 0.1, 0.7, 0.99])
def test_a_truncated_cache_is_refused(cache_root, part):
    truncate(cache_root / "modelnet40_train_8192pts_fps.dat", part)
    with pytest.raises(DataError, match=r"fps\.dat: cannot be read"):
        modelnet40.load(cache_root, "train")


@pytest.mark.parametrize("part", [0, 0.1, 0.5, 0.9])
def test_a_truncated_h5_is_refused(hdf5_root, part):
    truncate(hdf5_root / "ply_data_train1.h5", part)
    with pytest.raises(DataError, match=r"ply_data_train1\.h5: cannot be read"):
        modelnet40.load(hdf5_root, "train")
    assert len(modelnet40.load(hdf5_root, "test")) == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": np.where(np.arange(4)[:, None, None] == 2, np.nan, clouds(4))}, "1 clouds .* the first is cloud 2"),
        ({"data": clouds(4)[..., :2]}, "data must be numbers"),
        ({"data": clouds(4)[0]}, "data must be numbers"),
        ({"data": clouds(4)[:, :0]}, "data must be numbers"),
        ({"label": np.array([0, 1])}, "4 clouds have 2 labels"),
        ({"label": np.array([0, 1, 2, 3])}, "labels must be 0 to 2, got 0 to 3"),
        ({"label": np.array([0, 1, 2, -1])}, "got -1 to 2"),
        ({"label": np.array([0, 1, 2, 0.5])}, "whole numbers"),
        ({"data": clouds(4, points=9)}, "24 points per cloud, ply_data_train0.h5 has 9"),
    ],
)
def test_an_h5_of_something_else_is_refused(hdf5_root, changes, words):
    content = {"data": clouds(4), "label": np.zeros(4, np.int64)} | changes
    write_h5(hdf5_root / "ply_data_train0.h5", **content)
    with pytest.raises(DataError, match=words):
        modelnet40.load(hdf5_root, "train")


def test_whole_numbers_stored_as_floats_are_labels(hdf5_root):
    write_h5(hdf5_root / "ply_data_test0.h5", clouds(2), np.array([2.0, 0.0]))
    assert modelnet40.load(hdf5_root, "test").labels.tolist() == [2, 0]


def test_an_h5_without_labels_is_refused(hdf5_root):
    write_h5(hdf5_root / "ply_data_train0.h5", clouds(4), clouds(1))
    import h5py

    with h5py.File(hdf5_root / "ply_data_train0.h5", "a") as file:
        del file["label"]
    with pytest.raises(DataError, match="has no label, only data"):
        modelnet40.load(hdf5_root, "train")


@pytest.mark.parametrize(
    ("fixture", "missing", "words"),
    [
        ("hdf5_root", "shape_names.txt", "shape_names.txt: no such file; it lists the class names"),
        ("hdf5_root", "ply_data_train1.h5", "ply_data_train1.h5: no such file"),
        ("text_root", "modelnet40_train.txt", "modelnet40_train.txt: no such file; it lists the clouds"),
        ("text_root", "modelnet40_shape_names.txt", "holds no ModelNet40"),
        ("text_root", "chair/chair_0002.txt", "chair_0002.txt: no such file; 1 of 3 train clouds are missing"),
        ("cache_root", "modelnet40_train_8192pts_fps.dat", "has no modelnet40_train_8192pts_fps.dat"),
    ],
)
def test_a_missing_file_is_named(fixture, missing, words, request):
    root = request.getfixturevalue(fixture)
    (root / missing).unlink()
    with pytest.raises(DataError, match=words):
        modelnet40.load(root, "train")


def test_an_empty_list_and_a_cloud_of_no_class_are_refused(text_root):
    (text_root / "modelnet40_train.txt").write_text("sofa_0001\n")
    with pytest.raises(DataError, match="sofa_0001 is of no class"):
        modelnet40.load(text_root, "train")
    (text_root / "modelnet40_train.txt").write_text("")
    with pytest.raises(DataError, match=r"modelnet40_train\.txt: the file is empty"):
        modelnet40.load(text_root, "train")


def test_no_such_folder(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        modelnet40.load(tmp_path / "none", "train")
    with pytest.raises(DataError, match="holds no ModelNet40"):
        load_dataset(f"modelnet40:{tmp_path}")
