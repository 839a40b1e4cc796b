import pytest
import torch

from pointpeft.data import DataError, load_dataset
from pointpeft.data.sets import scanobjectnn
from tests.data.conftest import clouds, truncate


@pytest.mark.parametrize(("variant", "first"), [("obj_bg", 0), ("obj_only", 1), ("pb_t50_rs", 2)])
def test_each_variant_is_its_own_file_and_untouched(scan_root, variant, first):
    train = scanobjectnn.load(scan_root, "train", variant)
    assert train.labels.tolist() == [first, 14, 3, 4]
    assert (train.classes[0], train.classes[4], train.classes[14], len(train.classes)) == ("bag", "chair", "toilet", 15)
    assert torch.equal(train[3][0], torch.from_numpy(clouds(4))[3])
    assert train.up_axis == "y"
    assert not train.normalized
    assert scanobjectnn.load(scan_root, "test", variant).labels.tolist() == [first, 14]


def test_the_hardest_variant_is_the_default_and_num_points_cuts(scan_root):
    train = scanobjectnn.load(scan_root, "train", num_points=6)
    assert train.labels[0] == 2
    assert train[0][0].shape == (6, 3)


@pytest.mark.parametrize("below", ["main_split", "main_split_nobg"])
def test_the_folder_of_one_split_serves_too(scan_root, below):
    variant = "obj_bg" if below == "main_split" else "obj_only"
    assert len(scanobjectnn.load(scan_root / below, "train", variant)) == 4


def test_the_archive_as_it_unpacks_serves_too(scan_root, tmp_path):
    (tmp_path / "root").mkdir()
    scan_root.rename(tmp_path / "root" / "h5_files")
    assert len(load_dataset(f"scanobjectnn:{tmp_path / 'root'}:obj_only", "test")) == 2
    assert len(load_dataset(tmp_path / "root", "test")) == 2


def test_what_is_missing_is_named_with_what_is_there(scan_root):
    for path in (scan_root / "main_split").glob("*scale75.h5"):
        path.unlink()
    with pytest.raises(
        DataError, match=r"training_objectdataset_augmentedrot_scale75.h5: no such file.*obj_bg, obj_only\)"
    ):
        scanobjectnn.load(scan_root, "train")
    with pytest.raises(DataError, match="variant must be one of obj_bg, obj_only, pb_t50_rs, got 'hard'"):
        scanobjectnn.load(scan_root, "train", "hard")


def test_a_truncated_file_is_refused(scan_root):
    truncate(scan_root / "main_split" / "test_objectdataset.h5")
    with pytest.raises(DataError, match=r"test_objectdataset\.h5: cannot be read"):
        scanobjectnn.load(scan_root, "test", "obj_bg")
