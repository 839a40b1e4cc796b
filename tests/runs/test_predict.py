import copy
import io
import json
import os
import tarfile
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

from pointpeft import create_model
from pointpeft.data import DataError
from pointpeft.data import stream as stream_module
from pointpeft.data.stream import stream
from pointpeft.locks import InUseError, Lock
from pointpeft.runs.evaluate import predict
from pointpeft.runs.predict import predict_stream
from pointpeft.tasks.adapted import Adapted

CLASSES = ("ball", "disc", "rod")


@pytest.fixture(scope="module")
def adapted():
    torch.manual_seed(0)
    model = create_model("point_mae_tiny", "linear", 3, depth=1, num_groups=8, group_size=8, width=24, num_heads=2)
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter)
    return Adapted(model.eval(), CLASSES, 64, True)


@pytest.fixture
def clouds():
    return np.random.default_rng(0).normal(size=(7, 80, 3)).astype(np.float32) + 5


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as shard:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def places(clouds, tmp_path):
    """The same seven clouds in a folder, a tar shard and an HDF5 shard."""
    folder = tmp_path / "clouds" / "inner"
    folder.mkdir(parents=True)
    for i, cloud in enumerate(clouds):
        np.save(folder / f"{i}.npy", cloud)
    (folder / "notes.md").write_text("no cloud")
    shard = write_tar(
        tmp_path / "shard.tar", {"readme.md": b"no", **{f"{i}.npy": npy(c) for i, c in enumerate(clouds)}}
    )
    with h5py.File(tmp_path / "shard.h5", "w") as file:
        file["data"] = clouds
    return folder.parent, shard, tmp_path / "shard.h5"


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_folders_and_shards_give_what_single_files_give(adapted, places, tmp_path):
    expected = predict(adapted, sorted((places[0] / "inner").glob("*.npy")))
    facts = predict_stream(adapted, list(places), tmp_path / "out.jsonl", batch_size=4)
    assert facts.clouds == facts.clouds_now == 21
    assert facts.errors == 0
    found = lines(tmp_path / "out.jsonl")
    assert len({line["cloud"] for line in found}) == 21
    for i, line in enumerate(found):
        assert line["class"] == expected[i % 7]["class"]
        assert line["probability"] == pytest.approx(expected[i % 7]["probability"], abs=2e-4)


@pytest.mark.parametrize("kept", [0, 1, 9, 20, 21])
def test_a_stopped_stream_goes_on_behind_its_last_whole_line(adapted, places, tmp_path, kept):
    output = tmp_path / "out.jsonl"
    predict_stream(adapted, list(places), output, batch_size=4)
    whole = output.read_text()
    first = "".join(whole.splitlines(keepends=True)[:kept])
    output.write_text(first + '{"cloud": "half')
    facts = predict_stream(adapted, list(places), output, batch_size=5)
    assert facts.clouds == 21
    assert facts.clouds_now == 21 - kept
    got, expected = lines(output), [json.loads(line) for line in whole.splitlines()]
    assert [line["cloud"] for line in got] == [line["cloud"] for line in expected]
    assert [line["class"] for line in got] == [line["class"] for line in expected]


def test_other_clouds_or_another_file_are_not_continued(adapted, places, tmp_path):
    output = tmp_path / "out.jsonl"
    predict_stream(adapted, [places[0]], output)
    before = output.read_bytes()
    with pytest.raises(ValueError, match="give the same clouds, or another --output"):
        predict_stream(adapted, [places[1]], output)
    with pytest.raises(ValueError, match=r"has a line of .*, but"):
        predict_stream(adapted, [places[0] / "inner" / "0.npy"], output)
    assert output.read_bytes() == before
    output.write_text("something else\n")
    with pytest.raises(ValueError, match="line 1: is no prediction"):
        predict_stream(adapted, [places[0]], output)


def other(adapted, **changes):
    return replace(adapted, model=copy.deepcopy(adapted.model), **changes)


def test_answers_of_another_model_are_not_continued(adapted, places, tmp_path):
    output = tmp_path / "out.jsonl"
    predict_stream(adapted, [places[0]], output)
    before = output.read_bytes()
    trained_again = other(adapted)
    with torch.no_grad():
        next(trained_again.model.head.parameters()).add_(1e-3)
    for another in (trained_again, other(adapted, classes=("cat", "dog", "cow")), other(adapted, num_points=32)):
        with pytest.raises(ValueError, match=r"holds the answers of another adapter, or of this one before it was"):
            predict_stream(another, [places[0]], output)
    assert output.read_bytes() == before
    assert predict_stream(other(adapted), [places[0]], output).clouds_now == 0
    (tmp_path / "out.origin.jsonl").unlink()
    with pytest.raises(ValueError, match=r"has lines, but no out\.origin\.jsonl says what made them; remove"):
        predict_stream(adapted, [places[0]], output)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_answer_of_a_replaced_cloud_is_not_kept(adapted, clouds, places, tmp_path, place):
    output = tmp_path / "out.jsonl"
    predict_stream(adapted, [places[place]], output)
    if place == 0:
        np.save(places[0] / "inner" / "3.npy", clouds[4])
    else:
        places[place].touch()
    with pytest.raises(
        ValueError, match=r"(3\.npy|shard\.(tar|h5)) changed since .*remove .* to predict anew, or give"
    ):
        predict_stream(adapted, [places[place]], output)


def test_clouds_that_were_not_predicted_yet_may_change_and_come(adapted, clouds, places, tmp_path):
    output, folder = tmp_path / "out.jsonl", places[0] / "inner"
    predict_stream(adapted, [places[0]], output)
    output.write_text("".join(output.read_text().splitlines(keepends=True)[:3]))
    np.save(folder / "5.npy", clouds[6])
    np.save(folder / "7.npy", clouds[1])
    facts = predict_stream(adapted, [places[0]], output)
    assert (facts.clouds, facts.clouds_now) == (8, 5)
    assert predict_stream(adapted, [places[0]], output).clouds_now == 0
    np.save(folder / "5.npy", clouds[5])
    with pytest.raises(ValueError, match=r"5\.npy changed since"):
        predict_stream(adapted, [places[0]], output)


def test_two_predictions_do_not_write_one_file(adapted, places, tmp_path):
    output = tmp_path / "out.jsonl"
    lock = Lock(tmp_path / ".out.jsonl.lock", str(output), "wait")
    with pytest.raises(
        InUseError, match=rf"out\.jsonl is in use by process {os.getpid()} .*\.lock; .* another --output"
    ):
        predict_stream(adapted, [places[0]], output)
    lock.release()
    assert predict_stream(adapted, [places[0]], output).clouds_now == 7


def test_bad_clouds_get_a_line_and_do_not_stop_the_others(adapted, clouds, tmp_path):
    bad = clouds[0].copy()
    bad[3, 1] = np.nan
    shard = write_tar(
        tmp_path / "s.tar",
        {"a.npy": npy(bad), "b.npy": npy(clouds[1]), "c.npy": b"", "d.npy": npy(clouds[2][:3]), "e.npy": b"\x93NUMPY"},
    )
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["data"] = np.stack([clouds[0], bad])
    facts = predict_stream(adapted, [shard, tmp_path / "s.h5"], tmp_path / "out.jsonl")
    found = lines(tmp_path / "out.jsonl")
    assert ["error" in line for line in found] == [True, False, True, True, True, False, True]
    assert facts.errors == 5
    assert all(line["cloud"].split("/")[-1] in line["error"] for line in found if "error" in line)
    assert "at least group_size = 8" in found[3]["error"]


def test_names_in_a_shard_never_become_paths(adapted, clouds, tmp_path):
    (tmp_path / "in").mkdir()
    shard = write_tar(tmp_path / "in" / "s.tar", {"../../escaped.npy": npy(clouds[0]), "/absolute.npy": npy(clouds[1])})
    facts = predict_stream(adapted, [shard], tmp_path / "out" / "out.jsonl")
    assert facts.clouds == 2
    assert facts.errors == 0
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "out.jsonl",
        "out.origin.jsonl",
        "s.tar",
    ]


def test_a_member_that_is_too_large_is_not_read(clouds, tmp_path, monkeypatch):
    monkeypatch.setattr(stream_module, "LARGEST_MEMBER", 100)
    shard = write_tar(tmp_path / "s.tar", {"a.npy": npy(clouds[0])})
    for source in stream([shard], True):
        with pytest.raises(DataError, match="at most 100 are read"):
            source.read()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.tar", b"no tar at all" * 100, "cannot be read"),
        ("s.h5", b"no hdf5", "cannot be read"),
        ("missing.tar", None, "no such file"),
    ],
)
def test_a_broken_shard_is_named(adapted, tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        predict_stream(adapted, [tmp_path / name], tmp_path / "out.jsonl")


def test_a_folder_without_clouds_and_hdf5_without_data(adapted, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no file of a known kind"):
        predict_stream(adapted, [tmp_path / "empty"], tmp_path / "out.jsonl")
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["points"] = np.zeros((2, 4, 3))
    with pytest.raises(DataError, match="has no data, only points"):
        predict_stream(adapted, [tmp_path / "s.h5"], tmp_path / "out.jsonl")


def test_hdf5_that_leads_elsewhere_is_refused(adapted, clouds, tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = clouds
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["data"] = h5py.ExternalLink("other.h5", "data")
    with pytest.raises(DataError, match=r"s\.h5: refused: data lies in another file"):
        predict_stream(adapted, [tmp_path / "s.h5"], tmp_path / "out.jsonl")
