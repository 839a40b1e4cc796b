import pickle
from functools import partial

import h5py
import numpy as np
import pytest
import torch

from pointpeft.data import DataError, load_dataset
from pointpeft.data.sets import few_shot
from pointpeft.data.sets.few_shot import source_of
from tests.clouds import write_clouds

SHAPES = {name: (1.0, 0.2 * i + 0.1, 1.0) for i, name in enumerate("abcd")}

load = partial(few_shot.load, load_source=load_dataset)


def write_folds(root, ways=3, shots=2, folds=2, spelling="{}way_{}shot", classes=(7, 30, 2)):
    random = np.random.default_rng(0)
    folder = root / spelling.format(ways, shots)
    folder.mkdir(parents=True)
    for fold in range(folds):
        content = {
            part: [
                (random.normal(size=(20, 6)).astype(np.float32), label, classes[label])
                for label in range(ways)
                for _ in range(count)
            ]
            for part, count in (("train", shots), ("test", 4))
        }
        (folder / f"{fold}.pkl").write_bytes(pickle.dumps(content))
    return root


@pytest.mark.parametrize("spelling", ["{}way_{}shot", "{}way{}shot"])
def test_published_folds_under_both_spellings(tmp_path, spelling):
    root = write_folds(tmp_path / "folds", spelling=spelling)
    train, test = (load(root, 3, 2, 1, split=part) for part in ("train", "test"))
    assert (len(train), len(test)) == (6, 12)
    assert train.classes == test.classes == ("class 7", "class 30", "class 2")
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    points, _ = train[0]
    assert points.shape == (20, 3)
    assert points.norm(dim=1).max() == pytest.approx(1)
    inside = load(root / spelling.format(3, 2), 3, 2, 1)
    assert torch.equal(inside[0][0], points)
    assert torch.equal(load_dataset(source_of(str(root), 3, 2, 1), "train")[0][0], points)


def test_a_fold_that_runs_code_is_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (print, ("run",))

    root = write_folds(tmp_path)
    (root / "3way_2shot" / "0.pkl").write_bytes(pickle.dumps({"train": [Bomb()], "test": []}))
    with pytest.raises(DataError, match=r"0.pkl: refused: it asks for"):
        load(root, 3, 2, 0)


def test_missing_and_wrong_folds_are_named(tmp_path):
    root = write_folds(tmp_path)
    with pytest.raises(DataError, match=r"5.pkl: no such file; .* holds 2 folds"):
        load(root, 3, 2, 5)
    with pytest.raises(DataError, match="has no 5way_10shot or 5way10shot, only 3way_2shot"):
        load(root, 5, 10, 0)
    (root / "3way_2shot" / "1.pkl").write_bytes(pickle.dumps({"train": [(np.zeros((4, 3)), 9, 1)], "test": []}))
    with pytest.raises(DataError, match="train cloud 0: label must be 0 to 2, got 9"):
        load(root, 3, 2, 1)
    (root / "3way_2shot" / "1.pkl").write_bytes(pickle.dumps({"train": [1], "test": []}))
    with pytest.raises(DataError, match="train cloud 0 must be"):
        load(root, 3, 2, 1)


def test_folds_drawn_from_a_data_set_repeat_and_differ(tmp_path):
    root = str(write_clouds(tmp_path / "scans", per_class=6, shapes=SHAPES))
    train, test = (load(root, 2, 3, 0, split=part) for part in ("train", "test"))
    assert (len(train), len(test), len(train.classes)) == (6, 12, 2)
    assert train.classes == test.classes
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert all(f"train/{train.classes[label]}/" in name for name, label in zip(train.names, train.labels, strict=True))
    assert all(f"test/{test.classes[label]}/" in name for name, label in zip(test.names, test.labels, strict=True))
    assert load(root, 2, 3, 0).names == train.names
    drawn = {(*load(root, 2, 3, fold, seed).names,) for fold in range(4) for seed in range(3)}
    assert len(drawn) > 6
    assert any("fold 0 of 2-way 3-shot, drawn with seed 0" in note for note in train.notes)


@pytest.mark.parametrize(
    ("numbers", "error", "message"),
    [
        ((5, 3, 0), DataError, "5-way 3-shot needs 5 classes .* 4 of 4 have them"),
        ((2, 9, 0), DataError, "2-way 9-shot needs 2 classes with at least 9 training clouds .* 0 of 4"),
        ((1, 3, 0), ValueError, "ways must be at least 2, got 1"),
        ((2, 0, 0), ValueError, "shots must be at least 1, got 0"),
        ((2, 1, -1), ValueError, "fold must be at least 0, got -1"),
    ],
)
def test_folds_that_cannot_be_drawn_are_an_error(tmp_path, numbers, error, message):
    root = write_clouds(tmp_path / "scans", per_class=6, shapes=SHAPES)
    with pytest.raises(error, match=message):
        load(root, *numbers)


def test_a_wrong_word():
    with pytest.raises(DataError, match="a few-shot fold is few_shot:SOURCE:5way10shot:FOLD or"):
        load_dataset("few_shot:furniture:5w10s:0")


def test_clouds_that_no_fold_has_drawn_are_not_read(tmp_path):
    random = np.random.default_rng(0)
    for name, count in (("train", 12), ("test", 6)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["data"] = random.normal(size=(count, 20, 3)).astype(np.float32)
            file["label"] = np.arange(count) % 2
    drawn = load(tmp_path, 2, 1, 0).names
    other = next(row for row in range(12) if f"train.h5[{row}]" not in drawn)
    with h5py.File(tmp_path / "train.h5", "a") as file:
        file["data"][other] = np.nan
    again = load(tmp_path, 2, 1, 0)
    assert again.names == drawn
    assert all(torch.isfinite(points).all() for points, _ in again)
