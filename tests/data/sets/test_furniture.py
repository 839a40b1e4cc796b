"""The embedded furniture: what it holds, that its split is fair, that all are credited, that it can be made again."""

import h5py
import numpy as np
import pytest
import torch

from pointpeft.data import DataError, normalize
from pointpeft.data.embedded import build
from pointpeft.data.embedded.similarity import chamfer_distance, connected_groups, resampling_ratio
from pointpeft.data.sets import furniture


@pytest.fixture(scope="module")
def stored():
    with h5py.File(furniture.PATH) as file:
        return {name: file[name].asstr()[()] if name in ("item", "classes") else file[name][()] for name in file}


@pytest.mark.parametrize("split", ["train", "test"])
def test_clouds_are_finite_normalised_and_named(split):
    dataset = furniture.load(split)
    clouds = torch.stack([dataset[i][0] for i in range(len(dataset))])
    assert clouds.dtype == torch.float32
    assert clouds.shape[1:] == (1024, 3)
    assert clouds.isfinite().all()
    step = 1 / build.SCALE  # the coordinates are rounded to it
    assert clouds.mean(1).abs().max() < step / 2
    radius = clouds.norm(dim=-1).amax(1)
    assert (radius - 1).abs().max() < step
    assert dataset.normalized
    assert len(set(dataset.names)) == len(dataset)


def test_every_class_has_twenty_clouds_and_thirty_percent_of_them_in_test():
    train, test = furniture.load("train"), furniture.load("test")
    assert train.classes == test.classes == tuple(sorted(train.classes))
    assert len(train.classes) >= 12
    assert not set(train.names) & set(test.names)
    for label in range(len(train.classes)):
        in_train, in_test = int((train.labels == label).sum()), int((test.labels == label).sum())
        assert in_train + in_test >= 20
        assert 0.25 <= in_test / (in_train + in_test) <= 0.35


def test_up_is_y():
    """Lamps, trees, bottles and people are taller than wide; tables carry most of their points high up."""
    dataset = furniture.load("train")
    assert dataset.up_axis == "y"
    for name in ("bottle", "tree", "door_window"):
        clouds = torch.stack([dataset[i][0] for i in (dataset.labels == dataset.classes.index(name)).nonzero()[:, 0]])
        extent = clouds.amax(1) - clouds.amin(1)
        assert (extent[:, 1] == extent.amax(1)).float().mean() > 0.6
    tables = torch.stack([dataset[i][0] for i in (dataset.labels == dataset.classes.index("table")).nonzero()[:, 0]])
    y = tables[..., 1]
    assert ((y.median(1).values - y.amin(1)) > (y.amax(1) - y.median(1).values)).float().mean() > 0.7


def test_variants_of_one_model_lie_in_one_split(stored):
    split_of = {}
    for group, test in zip(stored["group"].tolist(), stored["test"].tolist(), strict=True):
        assert split_of.setdefault(group, test) == test
    family_of = {item.id: item.family for item in build.read_items() if item.family}
    split_of = {}
    for item, test in zip(stored["item"], stored["test"].tolist(), strict=True):
        if item in family_of:
            assert split_of.setdefault(family_of[item], test) == test


def test_no_near_duplicate_across_the_split(stored):
    """Found afresh from the stored points.

    On 1024 points the ratios scatter and shrink towards 1 against those of 2048 that formed the groups: near-duplicates
    reach down to 0.99, the nearest pair across the split 1.13.
    """
    clouds = torch.from_numpy(stored["points"]).float()
    within = []
    for label in range(len(stored["classes"])):
        members = np.flatnonzero(stored["label"] == label)
        near = resampling_ratio(clouds[members]) < 1.1
        across = torch.from_numpy(stored["test"][members][:, None] != stored["test"][members])
        i, j = (near & across).nonzero(as_tuple=True)
        assert not len(i), f"{stored['item'][members[i[0]]]} and {stored['item'][members[j[0]]]}"
        within.append(int((near & ~across).sum()) - len(members))
    assert sum(within) > 0  # the measure does find the variants where they are


def test_every_item_is_credited(stored):
    lines = [
        line.split(" | ") for line in (build.FOLDER / "CREDITS").read_text(encoding="utf-8").splitlines() if "#" in line
    ]
    listed = {line[0]: line[1:] for line in lines[1:]}
    items = {item.id: item for item in build.read_items()}
    assert set(listed) == set(stored["item"]) == set(items)
    for item, (title, author, licence) in listed.items():
        assert title
        assert author == items[item].author
        assert licence in build.LICENCES
        assert ("CC0" in licence) == ("CC-0" in item)


def test_labels_are_those_of_the_list(stored):
    class_of = {item.id: item.class_name for item in build.read_items()}
    assert [stored["classes"][label] for label in stored["label"]] == [class_of[item] for item in stored["item"]]


def test_no_more_than_two_and_a_half_megabytes():
    assert sum(path.stat().st_size for path in build.FOLDER.iterdir() if path.is_file()) <= 2.5e6


def test_load_refuses_another_split():
    with pytest.raises(ValueError, match='"train" or "test", got \'validation\''):
        furniture.load("validation")


@pytest.fixture
def source(tmp_path, stored):
    """A file such as the one the set was made from, of twelve items, where item 1 is a mirror image of item 0."""
    generator = torch.Generator().manual_seed(0)
    chosen = np.concatenate([np.flatnonzero(stored["label"] == label)[:6] for label in (5, 12)])
    points = torch.from_numpy(stored["points"][chosen]).float() / build.SCALE
    points[1] = points[0][torch.randperm(1024, generator=generator)] * torch.tensor([-0.5, 0.5, 0.5])
    with h5py.File(tmp_path / "models.h5", "w") as file:
        file["data"] = points.half().numpy()
        file["id"] = [str(id) for id in stored["item"][chosen]]
        file["name"] = [f"Title {i}" for i in range(len(chosen))]
        file["licence"] = ["CC0"] * len(chosen)
    chosen_ids = set(stored["item"][chosen])
    return tmp_path / "models.h5", [item for item in build.read_items() if item.id in chosen_ids]


def test_rebuilding_gives_the_same_bytes(source, tmp_path):
    path, items = source
    written = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        build.build(path, tmp_path / name, items if name == "one" else items[::-1])
        assert sorted(file.name for file in (tmp_path / name).iterdir()) == ["CREDITS", "furniture.h5"]
        written.append([(tmp_path / name / file).read_bytes() for file in ("furniture.h5", "CREDITS")])
    assert written[0] == written[1]


def test_build_keeps_a_scaled_mirror_image_with_its_original(source, tmp_path):
    path, items = source
    build.build(path, tmp_path, items)
    with h5py.File(path) as file:
        ids, data = file["id"].asstr()[:], torch.from_numpy(file["data"][()]).float()
    with h5py.File(tmp_path / "furniture.h5") as file:
        row = {id: i for i, id in enumerate(file["item"].asstr())}
        group, points = file["group"][()], torch.from_numpy(file["points"][()]).float() / build.SCALE
    assert group[row[ids[0]]] == group[row[ids[1]]]
    for id, cloud in zip(ids, data, strict=True):
        assert chamfer_distance(points[row[id]][None], normalize(cloud)[None]) < 2 / build.SCALE


def test_build_names_a_missing_item(source, tmp_path):
    path, items = source
    with pytest.raises(DataError, match="lacks Nobody#nothing"):
        build.build(path, tmp_path, [*items, build.Item("chair", "Nobody#nothing", "nobody")])


def test_build_refuses_an_unknown_licence():
    with pytest.raises(DataError, match="got all rights reserved"):
        build.credit_text([build.Item("chair", "a#b", "c")], [("Chair", "all rights reserved")])


@pytest.mark.parametrize(("text", "message"), [("chair\tx\n", "line 1"), ("chair\tx\ty\nbed\tx\ty\n", "got twice: x")])
def test_the_list_is_checked(tmp_path, text, message):
    (tmp_path / "items.tsv").write_text(text)
    with pytest.raises(DataError, match=message):
        build.read_items(tmp_path / "items.tsv")


def test_draw_test_takes_whole_groups():
    groups = [0, 0, 0, 0, 4, 5, 6, 6, 8, 9]
    for seed in range(20):
        test = build.draw_test(groups, 0.3, torch.Generator().manual_seed(seed))
        assert sum(test) == 3
        assert not test[0]
        assert test[6] == test[7]


def test_connected_groups_follow_chains():
    linked = torch.zeros(5, 5, dtype=torch.bool)
    for i, j in ((0, 3), (3, 4), (1, 2)):
        linked[i, j] = linked[j, i] = True
    assert connected_groups(linked) == [0, 1, 1, 0, 0]


def test_resampling_ratio_is_one_for_two_samples_of_one_surface():
    generator = torch.Generator().manual_seed(0)
    sphere = torch.randn(2, 2048, 3, generator=generator)
    box = torch.rand(1, 2048, 3, generator=generator)
    box[0, torch.arange(2048), torch.randint(3, (2048,), generator=generator)] = 0
    ratios = resampling_ratio(torch.cat([sphere / sphere.norm(dim=-1, keepdim=True), box]))
    assert abs(ratios[0, 1] - 1) < 0.05
    assert ratios[0, 2] > 2
    assert torch.equal(ratios, ratios.T)
