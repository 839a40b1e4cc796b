import numpy as np
import pytest
import torch

from pointpeft.data import DataError
from pointpeft.data.sets.s3dis import CLASSES, load

NAMES = ("Area_1_office_1", "Area_1_hallway_2", "Area_5_office_1", "Area_6_lobby_1")


def write_rooms(root, names=NAMES, points=2000, side=1.6, seed=0):
    """Rooms with floor, ceiling and clutter between, in the published columns; far from 0, in float64."""
    random = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        label = random.choice([0, 1, 12], points, p=(0.3, 0.3, 0.4))
        xyz = random.random((points, 3)) * (side, 1.3 * side, 1.6) + (0, 0, 0.2)
        xyz[label == 1, 2] = 0.0
        xyz[label == 0, 2] = 2.0
        table = np.column_stack([xyz + np.array([5000.0, 40.0, 7.0]), random.integers(0, 256, (points, 3)), label])
        np.save(root / f"{name}.npy", table)
    return root


def test_an_area_is_the_test_part(tmp_path):
    root = write_rooms(tmp_path / "stanford_indoor3d")
    train, test = load(root, "train"), load(root, "test")
    assert test.names == ["Area_5_office_1"]
    assert train.names == ["Area_1_hallway_2", "Area_1_office_1", "Area_6_lobby_1"]
    assert train.labels.tolist() == [1, 1, 6]
    assert load(f"{root}:1", "test").names == ["Area_1_hallway_2", "Area_1_office_1"]
    assert len(CLASSES) == len(train.classes) == 13


def test_a_room_starts_at_zero_and_keeps_its_metres(tmp_path):
    root = write_rooms(tmp_path)
    xyz, labels = load(root, "test")[0]
    table = np.load(root / "Area_5_office_1.npy")
    assert (xyz.dtype, labels.dtype) == (torch.float32, torch.int64)
    np.testing.assert_allclose(xyz, table[:, :3] - table[:, :3].min(0), atol=1e-6)
    assert labels.tolist() == table[:, 6].astype(int).tolist()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.zeros((5, 6)), r"must be numbers \[N, 7\]"),
        (np.full((5, 7), 13.0), "classes must be 0 to 12, got 13"),
        (np.full((5, 7), np.nan), "5 of 5 points are not finite"),
        (np.array([{}]), "cannot be read"),
    ],
)
def test_broken_rooms_are_named(tmp_path, table, message):
    np.save(tmp_path / "Area_5_x_1.npy", table, allow_pickle=True)
    write_rooms(tmp_path, ["Area_1_y_1"])
    with pytest.raises(DataError, match=rf"Area_5_x_1.npy: .*{message}"):
        load(tmp_path, "test")[0]


def test_missing_rooms_are_an_error(tmp_path):
    with pytest.raises(DataError, match="no such folder; semantic segmentation needs a folder of rooms"):
        load(tmp_path / "none", "train")
    with pytest.raises(DataError, match="has no rooms named Area_5_office_1"):
        load(tmp_path, "train")
    root = write_rooms(tmp_path, ["Area_5_a_1"])
    with pytest.raises(DataError, match="has no train rooms: all are of the test area 5"):
        load(root, "train")
    with pytest.raises(DataError, match="has no rooms of the test area 2, only of 5"):
        load(f"{root}:2", "test")
    with pytest.raises(ValueError, match='up_axis must be "z" for rooms'):
        load(root, "test", "y")
