"""What the fuzzer of the readers found, one test each."""

import pickle
import resource
import struct

import h5py
import laspy
import numpy as np
import pytest
import torch

from pointpeft.data import DataError, load_dataset, read_points
from pointpeft.data.formats.hdf5 import read_h5
from pointpeft.data.sets import part_files, s3dis, shapenetpart
from pointpeft.data.sets.modelnet40 import read_cache
from pointpeft.data.stream import stream
from pointpeft.files import read_weights
from tests.data.formats.test_readers import cloud, write_las
from tests.data.sets.test_part_files import arrays as part_arrays
from tests.data.sets.test_part_files import write as write_part_file
from tests.data.sets.test_shapenetpart import write as write_shapenetpart
from tests.hardening.fuzz.files import write_csv
from tests.hardening.fuzz.readers import originals, verdict


def test_every_file_is_valid_before_it_is_damaged():
    # Arrays in pickles of protocol 2 were refused.
    _, files, _ = originals()
    assert {name: verdict(name, path) for name, path in files.items()} == dict.fromkeys(files, "read")


def patched(path, form, at, *values):
    write_las(path, cloud())
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, at % len(content), *values)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "form", "at", "value", "message"),
    [
        # laspy reads four billion records, one by one, from the end of the file on.
        ("a.las", "<I", 100, 2**32 - 1, "4294967295 records in bytes"),
        ("a.laz", "<I", 100, 2**32 - 1, "4294967295 records in bytes"),
        ("a.las", "<I", 107, 2**32 - 1, "cut off: 740 bytes of points"),
        ("a.las", "<I", 96, 10**6, "damaged header"),
        ("a.las", "<H", 105, 4, "a point of 4 bytes"),
        ("a.las", "<B", 25, 9, "unknown LAS version 1.9"),
        # All points would lie in a plane, or nowhere.
        ("a.las", "<d", 139, 0.0, "damaged header: its coordinates have the scale"),
        ("a.las", "<d", 155, float("nan"), "damaged header: its coordinates have the scale"),
    ],
)
def test_a_las_header_is_not_believed(name, form, at, value, message, tmp_path):
    with pytest.raises(DataError, match=f"{name}.*{message}"):
        read_points(patched(tmp_path / name, form, at, value))


def test_a_laz_file_that_announces_more_chunks_than_it_can_hold_does_not_end_the_process(tmp_path):
    path = tmp_path / "a.laz"
    write_las(path, cloud())
    content = bytearray(path.read_bytes())
    start = struct.unpack_from("<I", content, 96)[0]
    table = struct.unpack_from("<q", content, start)[0]
    struct.pack_into("<I", content, table + 4, 0x31313131)  # lazrs asked for memory for as many, and aborted
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.laz.*damaged header"):
        read_points(path)


def test_las_versions_scales_and_offsets_are_those_of_laspy(tmp_path):
    for version, kind in [("1.2", 3), ("1.4", 6), ("1.3", 1)]:
        file = laspy.create(point_format=kind, file_version=version)
        file.header.scales, file.header.offsets = [1e-3, 1e-4, 1e-2], [500_000.0, -3.5, 12.25]
        file.x, file.y, file.z = cloud(50).astype("float64").T
        for name in ("a.las", "a.laz"):
            file.write(str(tmp_path / name))
            expected = torch.from_numpy(laspy.read(tmp_path / name).xyz.astype("float32"))
            assert torch.equal(read_points(tmp_path / name), expected)


@pytest.mark.parametrize("name", ["x" * 5000 + ".npy", "a\0b.npy"])
def test_a_list_with_a_name_that_no_file_has_is_refused(name, tmp_path):
    path = tmp_path / "list.csv"
    write_csv(path)
    path.write_text(path.read_text() + f"{name},chair,train\n")
    with pytest.raises(DataError, match=r"list\.csv"):
        load_dataset(path, "train")


def test_a_pth_with_a_damaged_table_of_contents_is_named(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.zeros(3)}, path)
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02")  # an entry of the table
    content[at + 2] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.pth is not a readable PyTorch file, or damaged"):
        read_weights(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # A name was made for every number up to the highest, until memory ended.
        ({"label": np.full((2, 4), 10**12)}, "label must be at least 0 and below 10000, got 10{12} to 10{12}"),
        ({"label": np.full((2, 4), np.inf)}, "label must be at least 0 and below 10000, got inf to inf"),
        ({"category": np.array([0, 10**15])}, "category must be at least 0 and below 10000"),
        ({"category": np.array([0.5, 1])}, "category must be whole numbers, got float64"),
    ],
)
def test_numbers_of_parts_and_categories_are_bounded(change, message, tmp_path):
    path = tmp_path / "a.npz"
    xyz = np.arange(24.0).reshape(2, 4, 3)
    np.savez(path, **({"xyz": xyz, "label": np.zeros((2, 4), int), "category": np.array([0, 1])} | change))
    with pytest.raises(DataError, match=rf"a\.npz: {message}"):
        part_files.load(path, "train")


def test_categories_of_parts_may_be_names(tmp_path):
    path = tmp_path / "a.npz"
    xyz = np.random.default_rng(0).normal(size=(10, 4, 3))
    np.savez(path, xyz=xyz, label=np.zeros((10, 4), int), category=np.array([b"cup", b"table"] * 5))
    assert part_files.load(path, "train").classes == ("cup", "table")


def test_lists_of_shapenetpart_that_are_no_lists_are_named(tmp_path):
    root = write_shapenetpart(tmp_path / "s", per_split=1)
    listing = root / "train_test_split" / "shuffled_train_file_list.json"
    listing.write_text('["shape_data/02691156/' + "x" * 5000 + '"]')
    with pytest.raises(DataError, match="no such file; 1 of 4 train clouds are missing"):
        shapenetpart.load(root, "train")
    (root / "synsetoffset2category.txt").write_bytes(b"Mug\t\xff\n")
    with pytest.raises(DataError, match=r"synsetoffset2category\.txt: is not text"):
        shapenetpart.load(root, "train")


def test_coordinates_whose_squares_overflow_are_refused_by_every_reader(tmp_path):
    # Infinite coordinates, or NaN after centring, left the readers that round to float32.
    huge = np.array([[1e30, 0, 0], [0, 1, 0], [0, 0, 1]])
    np.save(tmp_path / "a.npy", huge)
    np.save(tmp_path / "Area_5_a_1.npy", np.column_stack([huge * 1e20, np.zeros((3, 4))]))
    np.savez(tmp_path / "a.npz", xyz=huge[None], label=np.zeros((1, 3), int))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"], file["label"] = huge[None], np.zeros(1, int)
    (tmp_path / "a.dat").write_bytes(pickle.dumps([[huge], [np.array([0])]]))
    for read in (
        lambda: read_points(tmp_path / "a.npy"),
        lambda: s3dis.load(tmp_path, "test")[0],
        lambda: part_files.load(tmp_path / "a.npz", "train"),
        lambda: read_h5(tmp_path / "a.h5", 2),
        lambda: read_cache(tmp_path / "a.dat", 2),
        lambda: [source.read() for source in stream([tmp_path / "a.h5"], normalized=True)],
    ):
        with pytest.raises(DataError, match=r"a.*: coordinates up to 1e\+\d0 are too large for float32"):
            read()


def test_a_pickle_that_numbers_its_objects_from_a_billion_on_takes_no_memory(tmp_path):
    # Unpickling made a table of all numbers below: 11 GB for a file of 1 kB.
    arrays = [[np.zeros((4, 3), np.float32)], [np.array([0])]]
    content = pickle.dumps(arrays, 2).replace(b"q\x00", b"r" + struct.pack("<I", 680_825_748), 1)
    (tmp_path / "a.dat").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"a\.dat: is damaged: object number 680825748 in \d+ bytes"):
        read_cache(tmp_path / "a.dat", 2)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # kB


@pytest.mark.parametrize("lazy", [False, True])
def test_a_dataset_with_fewer_bytes_than_values_is_refused(lazy, tmp_path):
    # Clouds read one by one had zeros where the whole file had numbers.
    path = write_part_file(tmp_path / "clouds.h5", part_arrays(clouds=5, points=6))
    with h5py.File(path) as file:
        size, offset = file["xyz"].nbytes, file["xyz"].id.get_offset()
    content = bytearray(path.read_bytes())
    layout = struct.pack("<QQ", offset, size)
    assert content.count(layout) == 1
    place = content.index(layout)
    content[place : place + 16] = struct.pack("<QQ", offset, size - 64)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"clouds\.h5: is damaged: xyz has 296 bytes, its 90 values need 360"):
        part_files.load(path, "train", lazy=lazy)
