"""Points that depth cameras mark as not seen: refused with the way out named, or left out and counted."""

import io
import tarfile

import numpy as np
import pytest
import torch

from pointpeft.data import DataError, check, load_dataset, read_points
from pointpeft.data.stream import stream
from pointpeft.tasks.batches import Clouds
from tests.data.conftest import write_folder
from tests.data.formats.test_pcd import KINDS, write_pcd


@pytest.fixture
def cloud():
    points = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    points[[3, 17], 1] = np.nan
    points[20] = np.inf
    return points


FILES = {
    **{f"{kind}.pcd": (lambda path, p, kind=kind: write_pcd(path, p, kind)) for kind in KINDS},
    "a.npy": lambda path, p: np.save(path, p),
    "a.npz": lambda path, p: np.savez(path, points=p),
    "a.xyz": lambda path, p: np.savetxt(path, p),
}


@pytest.mark.parametrize("name", FILES)
def test_they_are_left_out_and_counted(name, cloud, tmp_path):
    path = tmp_path / name
    FILES[name](path, cloud)
    with pytest.raises(DataError, match=r"3 of 40 points are not finite, the first is point 3; --drop-non-finite"):
        read_points(path)
    dropped = {}
    points = read_points(path, drop_non_finite=dropped)
    torch.testing.assert_close(points, torch.from_numpy(cloud[np.isfinite(cloud).all(1)]), atol=1e-6, rtol=1e-6)
    assert dropped == {str(path): 3}
    assert torch.equal(read_points(path, drop_non_finite=True), points)


def test_a_cloud_of_nothing_else_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.full((4, 3), np.nan))
    with pytest.raises(DataError, match="none of its 4 points is finite"):
        read_points(tmp_path / "a.npy", drop_non_finite=True)


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_data_set_counts_what_it_leaves_out(on_disk, cloud, tmp_path):
    root = write_folder(tmp_path / "set", {"train/a": 2, "train/b": 2, "test/a": 1, "test/b": 1}, points=40)
    np.save(root / "train/a/00.npy", cloud)
    np.save(root / "train/b/01.npy", cloud)
    dataset = load_dataset(root, "train", drop_non_finite=True)
    clouds = Clouds(dataset, 16, on_disk=on_disk)
    assert sorted(clouds.sizes) == [37, 37, 40, 40]
    assert clouds.notes == ("6 points that are not finite were left out of 2 clouds",)
    assert clouds.points[0].isfinite().all()
    with pytest.raises(DataError, match="--drop-non-finite"):
        Clouds(load_dataset(root, "train"), 16)
    assert not check(root).ok
    report = check(root, drop_non_finite=True)
    assert report.ok
    assert "note: 6 points that are not finite were left out of 2 clouds" in report.lines


def test_streams_leave_them_out(cloud, tmp_path):
    np.save(tmp_path / "a.npy", cloud)
    content = io.BytesIO()
    np.savetxt(content, cloud)
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for name, data in (("x.npy", (tmp_path / "a.npy").read_bytes()), ("y.xyz", content.getvalue())):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))
    dropped = {}
    clouds = [source.read() for source in stream([tmp_path / "a.npy", tmp_path / "a.tar"], True, dropped)]
    assert [len(points) for points in clouds] == [37, 37, 37]
    assert dropped == {str(tmp_path / "a.npy"): 3, f"{tmp_path}/a.tar/x.npy": 3, f"{tmp_path}/a.tar/y.xyz": 3}


@pytest.mark.parametrize("source", ["furniture", "few_shot:furniture:2way2shot:0"])
def test_a_data_set_of_finite_points_has_no_such_option(source):
    with pytest.raises(
        ValueError, match=f"drop_non_finite must not be given for {source}, whose points are all finite"
    ):
        load_dataset(source, drop_non_finite=True)
