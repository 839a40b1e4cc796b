"""Files made to run code, to read other files, or to fill the memory: each is refused, and says why."""

import pickle
import re
import tracemalloc
import zipfile

import h5py
import numpy as np
import pytest
import torch

from pointpeft.checkpoints.adapter import read_config
from pointpeft.checkpoints.convert import read_model_section
from pointpeft.data import DataError, load_dataset, read_points
from pointpeft.data.formats.hdf5 import read_h5
from pointpeft.data.formats.numpy_pickle import load_arrays
from pointpeft.data.sets import shapenetpart
from pointpeft.data.sets.modelnet40 import read_cache, text_files
from pointpeft.data.sets.part_files import load as load_segments
from pointpeft.data.sets.shards import load as load_shards
from pointpeft.data.stream import stream
from pointpeft.files import read_weights
from pointpeft.training.run_folder import read_json
from tests.data.formats.test_readers import cloud

MEBIBYTE = 1 << 20


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture
def trap(tmp_path):
    """A place where nothing may be after the test."""
    place = tmp_path / "it ran"
    yield place
    assert not place.exists()


@pytest.fixture
def memory():
    """Holds a test to 64 MiB of Python's and NumPy's memory."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * MEBIBYTE


# ---- code ----


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_runs_nothing(protocol, trap, tmp_path):
    path = tmp_path / "fold.pkl"
    path.write_bytes(pickle.dumps([[np.zeros((2, 3))], Trap(trap)], protocol))
    with pytest.raises(DataError, match=r"fold\.pkl: refused: it asks for (io|_io|__builtin__|builtins)\.open"):
        load_arrays(path)


@pytest.mark.parametrize(
    "call", [b"cos\nsystem\n", b"cnumpy\nload\n", b"cbuiltins\neval\n", b"cbuiltins\ngetattr\n", b"cpickle\nloads\n"]
)
def test_a_pickle_written_by_hand_runs_nothing(call, trap, tmp_path):
    path = tmp_path / "a.dat"
    path.write_bytes(call + b"(S'touch \"" + str(trap).encode() + b"\"'\ntR.")
    with pytest.raises(DataError, match=r"a\.dat: refused: it asks for"):
        read_cache(path, 40)


def test_weights_run_nothing(trap, tmp_path):
    for name, old in (("new.pth", True), ("old.pth", False)):
        torch.save(
            {"model": {"w": torch.zeros(2)}, "x": Trap(trap)}, tmp_path / name, _use_new_zipfile_serialization=old
        )
        with pytest.raises(ValueError, match=rf"{name} is refused, .*can run code"):
            read_weights(tmp_path / name)


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_arrays_of_objects_run_nothing(name, trap, tmp_path):
    objects = np.array([[Trap(trap)] * 3], dtype=object)
    np.save(tmp_path / name, objects, allow_pickle=True) if name == "a.npy" else np.savez(
        tmp_path / name, points=objects
    )
    with pytest.raises(DataError, match=rf"{name}: cannot be read: Object arrays cannot be loaded"):
        read_points(tmp_path / name)


@pytest.mark.parametrize(
    "text",
    ["model: !!python/object/apply:os.system ['touch {trap}']", "model: !!python/object/new:open ['{trap}', 'w']"],
)
def test_yaml_tags_run_nothing(text, trap, tmp_path):
    (tmp_path / "a.yaml").write_text(text.format(trap=trap))
    with pytest.raises(ValueError, match=r"a\.yaml is not YAML: .*could not determine a constructor"):
        read_model_section(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "text", ["model: {since: 2024-13-13}", "model: " + "[" * 5000, "\udcff: 1", "model: \0", "a\x1a: 1"]
)
def test_yaml_that_its_library_cannot_bear_is_named(text, tmp_path):
    (tmp_path / "a.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"a\.yaml is not YAML"):
        read_model_section(tmp_path / "a.yaml")


def test_json_that_its_library_cannot_bear_is_named(tmp_path):
    for name, read in (
        ("adapter_config.json", lambda path: read_config(path.parent)),
        ("config.json", lambda path: read_json(path, "no run")),
    ):
        for content in (b"[" * 10**5, b'{"a": "\xff"}'):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ValueError, match=rf"{name} is not"):
                read(tmp_path / name)


# ---- other files ----


@pytest.mark.parametrize(
    "given", ["../secret.npy", "x/../../secret.npy", "{root}/secret.npy", "link.npy", "links/secret.npy"]
)
def test_a_list_reads_nothing_outside_its_folder(given, tmp_path):
    np.save(tmp_path / "secret.npy", cloud())
    (tmp_path / "set" / "x").mkdir(parents=True)
    (tmp_path / "set" / "link.npy").symlink_to(tmp_path / "secret.npy")
    (tmp_path / "set" / "links").symlink_to(tmp_path)
    (tmp_path / "set" / "list.csv").write_text(f"path,label\n{given.format(root=tmp_path)},a\n")
    with pytest.raises(DataError, match="lies outside the folder of the list"):
        load_dataset(tmp_path / "set" / "list.csv", "train")


def test_the_lists_of_a_data_set_read_nothing_outside_it(tmp_path):
    (tmp_path / "secret").mkdir()
    np.savetxt(tmp_path / "secret" / "a_0001.txt", cloud(), delimiter=",")
    root = tmp_path / "modelnet40_normal_resampled"
    root.mkdir()
    (root / "modelnet40_shape_names.txt").write_text("../secret\n")
    for split in ("train", "test"):
        (root / f"modelnet40_{split}.txt").write_text("../secret_0001\n")
    with pytest.raises(DataError, match=r"its lists name '\.\./secret'"):
        text_files(root, "train")
    parts = tmp_path / "shapenetpart"
    (parts / "train_test_split").mkdir(parents=True)
    (parts / "synsetoffset2category.txt").write_text("Mug\t..\n")
    with pytest.raises(DataError, match=r"synsetoffset2category\.txt: 'Mug \.\.' is none of"):
        shapenetpart.load(parts, "train")


def h5(path, kind, secret, key):
    """A file of one cloud with labelled points whose entry `key` is `data` of the file `secret`."""
    with h5py.File(path, "w") as file:
        content = {
            "data": np.ones((1, 4, 3), np.float32),
            "label": np.zeros(1, np.int64),
            "seg": np.zeros((1, 4), np.int64),
            "name": np.array([b"a"]),
            "classes": np.array([b"a"]),
        }
        for name in content.keys() - {key}:
            file[name] = content[name]
        shape, dtype = content[key].shape, content[key].dtype
        if kind == "link":
            file[key] = h5py.ExternalLink(str(secret), "data")
        elif kind == "link in a group":
            file.create_group("g")["out"] = h5py.ExternalLink(str(secret), "data")
            file[key] = h5py.SoftLink("/g/out")
        elif kind == "chain of links":
            file.create_group("g/h")["out"] = h5py.ExternalLink(str(secret), "/")
            file["g/h/here"] = h5py.SoftLink("out")
            file["g/there"] = h5py.SoftLink("h")
            file[key] = h5py.SoftLink("g/there/./here/data")
        elif kind == "storage":
            file.create_dataset(key, shape, dtype, external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
        else:
            layout = h5py.VirtualLayout(shape, dtype)
            layout[...] = h5py.VirtualSource(str(secret), "data", shape)
            file.create_virtual_dataset(key, layout)


@pytest.mark.parametrize("key", ["data", "label", "seg", "name", "classes"])
@pytest.mark.parametrize("kind", ["link", "link in a group", "chain of links", "storage", "virtual"])
def test_an_hdf5_file_reads_no_other_file(kind, key, tmp_path):
    secret = tmp_path / "secret"
    with h5py.File(secret, "w") as file:
        file["data"] = np.ones((1, 4, 3), np.float32)
    h5(tmp_path / "a.h5", kind, secret, key)
    before = secret.stat().st_atime_ns
    for read in (
        lambda path: read_h5(path, 40),
        lambda path: load_segments(path, "train"),
        lambda path: load_segments(path, "train", lazy=True),
        lambda path: load_shards(path, "train"),
        lambda path: list(stream([path], normalized=False)),
    ):
        with pytest.raises(DataError, match=rf"a\.h5: refused: {key} lies in (another file|other files)"):
            read(tmp_path / "a.h5")
    assert secret.stat().st_atime_ns == before


@pytest.mark.parametrize("target", ["/g/points", "g/points", "./again"])
def test_an_hdf5_file_may_link_to_itself(target, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["g/points"] = np.eye(3, dtype=np.float32)[None]
        file["again"] = h5py.SoftLink("g/points")
        file["data"] = h5py.SoftLink(target)
        file["label"] = np.zeros(1, np.int64)
        file["name"] = h5py.SoftLink("/nothing")
        file["loop"] = h5py.SoftLink("loop/x")
    with pytest.raises(DataError, match=r"a\.h5: refused: loop is a chain of more than 40 links"):
        read_h5(tmp_path / "a.h5", 40)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["loop"]
    points, _, names = read_h5(tmp_path / "a.h5", 40)
    assert torch.equal(points, torch.eye(3)[None])
    assert names == ["a.h5[0]"]


def test_an_obj_file_reads_no_other_file(tmp_path):
    (tmp_path / "secret.mtl").write_text("newmtl m\nmap_Kd secret.png\n")
    (tmp_path / "secret.png").write_bytes(b"not a picture: who opens it fails")
    (tmp_path / "a.obj").write_text("mtllib secret.mtl\nusemtl m\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    assert len(read_points(tmp_path / "a.obj", 10)) == 10


# ---- bombs ----


@pytest.mark.usefixtures("memory")
def test_a_zip_bomb_of_arrays_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("points.npy", "w") as entry:
        np.lib.format.write_array_header_1_0(
            entry, {"descr": "<f4", "fortran_order": False, "shape": (300 * MEBIBYTE // 12, 3)}
        )
        for _ in range(300):
            entry.write(bytes(MEBIBYTE))
    for read in (read_points, lambda p: load_segments(p, "train")):
        with pytest.raises(DataError, match=r"a\.npz: refused: it would unpack to 3\d{8} bytes, \d+ times its size"):
            read(path)


@pytest.mark.usefixtures("memory")
def test_a_zip_bomb_of_weights_is_refused(tmp_path):
    torch.save({"w": torch.zeros(8 * MEBIBYTE)}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "a.pth", "w", 8) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    tracemalloc.reset_peak()
    with pytest.raises(ValueError, match=r"a\.pth is refused: it would unpack to \d+ bytes, \d+ times its size"):
        read_weights(tmp_path / "a.pth")


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("options", [{"compression": "gzip", "chunks": (1, 10**6, 3)}, {"fillvalue": 1.0}])
def test_an_hdf5_bomb_is_refused(options, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", (1000, 10**6, 3), "f4", **options)
        file["label"] = np.zeros(1000, np.int64)
    for read in (lambda p: read_h5(p, 40), lambda p: load_segments(p, "train")):
        with pytest.raises(DataError, match=r"a\.h5: refused: it would unpack to 12\d{9} bytes"):
            read(tmp_path / "a.h5")


@pytest.mark.usefixtures("memory")
def test_a_pickle_bomb_is_refused(tmp_path):
    bomb: list = [0.0] * 10
    for _ in range(9):  # ten billion numbers, in a kilobyte
        bomb = [bomb] * 10
    (tmp_path / "a.dat").write_bytes(pickle.dumps([[bomb], [np.array([0])]]))
    assert (tmp_path / "a.dat").stat().st_size < 2000
    with pytest.raises(DataError, match=r"a\.dat: cloud 0: must be an array of numbers, got list"):
        read_cache(tmp_path / "a.dat", 40)


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.off", "OFF\n99999999999 0 0\n0 0 0\n"),
        ("a.ply", "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nend_header\n"),
        ("a.pcd", "FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nPOINTS 99999999999\nDATA binary\n"),
        ("a.pts", "99999999999\n0 0 0\n"),
    ],
)
def test_a_header_that_announces_more_than_there_is_takes_no_memory(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=re.escape(name)):
        read_points(tmp_path / name)
