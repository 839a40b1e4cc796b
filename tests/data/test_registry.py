"""A data set is one registered class: everything finds it without being edited."""

import pickle
from functools import partial
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import numpy as np
import pytest
import torch

from pointpeft.cli.main import main
from pointpeft.data import DataError, PointCloudDataset, check, load_dataset, registry, sets
from pointpeft.data.detect import detect
from pointpeft.data.findings import Findings
from pointpeft.data.part_loading import load_scenes, load_segments
from pointpeft.data.registry import DATA_SETS, DataSet, data_sets, layouts, parse_source, register_data_set
from pointpeft.tasks.base import create_task
from pointpeft.tasks.storage import can_read_source_lazily, should_read_lazily
from tests.data.conftest import clouds, write_folder
from tests.data.sets.test_part_files import arrays
from tests.data.sets.test_part_files import write as write_part_file
from tests.data.sets.test_s3dis import write_rooms
from tests.data.sets.test_shapenetpart import write as write_shapenetpart


def read_cloud(files, index):
    return torch.from_numpy(np.load(files[index]))


@pytest.fixture
def toy(monkeypatch):
    """A data set in one class: a folder of NAME-train.npy and NAME-test.npy."""
    monkeypatch.setattr(registry, "DATA_SETS", dict(DATA_SETS))

    @register_data_set
    class Pairs(DataSet):
        name = "pairs"
        title = "pairs of files"
        layout = "pairs:PATH"
        variant_pattern = r"[ab]+"

        def matches(self, path):
            return path.is_dir() and (path / "pairs.txt").is_file()

        def load(self, source, split, options):
            files = sorted(source.path.glob(f"[{source.variant or 'ab'}]-{split}.npy"))
            read = partial(read_cloud, files)
            return PointCloudDataset(
                read, range(len(files)), ("a", "b"), [f.name for f in files], up_axis=options.up_axis or "x"
            )

    return Pairs


@pytest.fixture
def pairs(toy, tmp_path):
    root = tmp_path / "pairs"
    root.mkdir()
    (root / "pairs.txt").write_text("")
    for i, name in enumerate(("a-train", "b-train", "a-test", "b-test")):
        np.save(root / f"{name}.npy", clouds(1, points=40, seed=i)[0])
    return root


@pytest.mark.parametrize("source", ["{}", "pairs:{}"])
def test_a_registered_class_is_found_by_everything(source, pairs, capsys):
    source = source.format(pairs)
    dataset = load_dataset(source)
    assert (len(dataset), dataset.up_axis, dataset.classes) == (2, "x", ("a", "b"))
    assert pickle.loads(pickle.dumps(dataset)).names == ["a-train.npy", "b-train.npy"]
    assert load_dataset(f"{source}:b", "test", up_axis="y").names == ["b-test.npy"]
    assert detect(pairs) == "pairs"
    assert main(["data", "check", source]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["pairs of files, up axis x", "train: 2 clouds: a 1, b 1"]
    assert can_read_source_lazily(source)
    assert should_read_lazily(source, "disk", 16, ("train",), create_task("classification"))
    assert load_dataset(f"few_shot:{source}:2way1shot:0").classes == ("a", "b")


def test_the_errors_name_it(pairs):
    assert "pairs:PATH" in layouts()
    with pytest.raises(DataError, match=r"nowhere: no such file or folder; a data set is a folder .*pairs:PATH"):
        load_dataset("nowhere")
    with pytest.raises(DataError, match="nowhere: no such folder; pairs is given as pairs:PATH"):
        load_dataset("pairs:nowhere")
    np.save(pairs / "b-train.npy", np.ones((9, 3), np.float32))
    report = check(pairs)
    assert not report.ok
    assert "BROKEN b-train.npy: all its 9 points are one and the same" in report.lines


def test_a_published_layout_is_tried_before_the_folder_of_classes(pairs):
    write_folder(pairs, {"a": 2, "b": 2})
    assert detect(pairs) == "pairs"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "two words"}, "name must be lower case letters, digits and underscores, got 'two words'"),
        ({"name": "furniture"}, "name must be unique among data sets of clouds, got 'furniture' twice"),
        ({"labels": "faces"}, "labels must be one of clouds, parts, scenes, got 'faces'"),
    ],
)
def test_a_wrong_registration_is_refused(change, words, toy):
    with pytest.raises(ValueError, match=words):
        register_data_set(type("Other", (toy,), change))


def test_a_class_without_its_functions_is_refused(monkeypatch):
    monkeypatch.setattr(registry, "DATA_SETS", {})
    with pytest.raises(TypeError, match="abstract"):
        register_data_set(type("Empty", (DataSet,), {"name": "empty", "title": "", "layout": ""}))
    assert registry.DATA_SETS == {}


def test_every_file_of_the_folder_is_imported_without_a_list():
    names = {module.name for module in iter_modules(sets.__path__)}
    registering = {type(data_set).__module__.rsplit(".", 1)[1] for data_set in DATA_SETS.values()}
    assert registering <= names
    for name in names:
        assert import_module(f"pointpeft.data.sets.{name}")
    text = Path(sets.__file__).read_text()
    assert not any(name in text for name in names)


def test_no_file_outside_the_sets_asks_for_a_data_set_by_its_layout():
    package = Path(registry.__file__).parents[1]
    for path in package.rglob("*.py"):
        assert "if layout ==" not in path.read_text(), path


SOURCES = {
    "modelnet40": "hdf5_root",
    "scanobjectnn": "scan_root",
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_published_layout_is_found_with_and_without_its_name(name, request):
    root = request.getfixturevalue(SOURCES[name])
    for text in (str(root), f"{name}:{root}"):
        source = parse_source(text)
        assert (source.data_set.name, source.path, source.variant, source.text) == (name, root, "", text)


def test_a_variant_may_follow_a_path_with_or_without_the_name(scan_root):
    for text in (f"{scan_root}:obj_bg", f"scanobjectnn:{scan_root}:obj_bg"):
        assert parse_source(text).variant == "obj_bg"
        assert load_dataset(text).labels[0] == 0
    with pytest.raises(DataError, match="variant must be one of obj_bg, obj_only, pb_t50_rs, got 'hard'"):
        load_dataset(f"{scan_root}:hard")
    odd = scan_root.rename(scan_root.parent / "scans:obj_bg")
    assert parse_source(f"scanobjectnn:{odd}").variant == ""  # what exists as a whole is a path
    assert load_dataset(f"scanobjectnn:{odd}:obj_only").labels[0] == 1


def test_labelled_points_go_through_the_registry(tmp_path):
    parts = write_shapenetpart(tmp_path / "shapes", per_split=1, points=40)
    assert detect(parts, "parts") == "shapenetpart"
    assert len(load_segments(f"shapenetpart:{parts}")) == len(load_segments(parts))
    file = write_part_file(tmp_path / "own.h5", arrays())
    assert detect(file, "parts") == "part_files"
    rooms = write_rooms(tmp_path / "rooms")
    assert detect(f"{rooms}:1", "scenes") == "s3dis"
    assert load_scenes(f"{rooms}:1", "test").names == load_scenes(f"s3dis:{rooms}:1", "test").names
    assert load_scenes(rooms, "test").names == ["Area_5_office_1"]
    with pytest.raises(
        DataError, match="nowhere: no such file or folder; semantic segmentation needs a folder of rooms"
    ):
        load_scenes("nowhere")
    for load in (load_segments, load_scenes):
        with pytest.raises(ValueError, match="split must be"):
            load(rooms, "val")


@pytest.mark.parametrize("labels", ["parts", "scenes"])
def test_labelled_points_are_checked(labels, tmp_path):
    if labels == "parts":
        root = write_shapenetpart(tmp_path / "set", per_split=2, points=40)
        broken = next(root.glob("*/test*.txt"))
        broken.write_text("1 2 3\n")
    else:
        root = write_rooms(tmp_path / "set", points=60)
        broken = root / "Area_5_office_1.npy"
        np.save(broken, np.zeros((4, 3)))
    report = check(root, labels=labels)
    problems = [line for line in report.lines if line.startswith("BROKEN")]
    assert len(problems) == 1
    assert broken.name in problems[0]
    assert report.lines[0] == {"parts": "ShapeNetPart, up axis y", "scenes": "S3DIS, up axis z"}[labels]
    assert any(line.startswith("train: ") for line in report.lines)


def test_a_fold_is_checked_as_it_is_named():
    report = check("few_shot:furniture:2way3shot:0")
    assert report.ok, report.lines
    assert report.lines[0] == "few-shot fold, up axis y"


def test_the_number_of_points_holds_for_folds_too():
    assert load_dataset("few_shot:furniture:2way3shot:0", num_points=20)[0][0].shape == (20, 3)


def test_every_data_set_says_what_it_is():
    for data_set in DATA_SETS.values():
        assert data_set.layout
        assert data_set.title
        assert type(data_set).__doc__
    for labels in ("clouds", "parts", "scenes"):
        assert data_sets(labels)
    assert Findings().report().lines == ("usable",)
