"""Small files that announce, or unpack to, more than they hold: each is refused before memory is taken for it."""

import gzip
import io
import pickle
import re
import tarfile
import zipfile
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest

from pointpeft.checkpoints.convert import read_model_section
from pointpeft.data import DataError, read_points
from pointpeft.data.formats.bounds import brief
from pointpeft.data.formats.hdf5 import read_h5
from pointpeft.data.formats.tar import list_tar, read_sample
from pointpeft.data.sets.modelnet40 import read_cache
from pointpeft.data.sets.part_files import load as load_segments
from pointpeft.data.sets.shards import load as load_shards
from pointpeft.data.stream import stream
from pointpeft.recipes.published_yaml import read_recipe

MEBIBYTE = 1 << 20
STATUS = Path("/proc/self/status")


def resident(entry):
    return int(re.search(rf"{entry}:\s*(\d+) kB", STATUS.read_text())[1]) << 10


@contextmanager
def memory(most):
    """Holds what runs inside it to `most` bytes beyond what the process had, libraries' memory included."""
    if not STATUS.exists():
        pytest.skip("the highest use of memory is read from /proc")
    Path("/proc/self/clear_refs").write_text("5")  # the highest use so far is forgotten
    before = resident("VmRSS")
    yield
    assert resident("VmHWM") - before < most


def read_first(path):
    for source in stream([path], normalized=True):
        source.read()


READS_HDF5 = {
    "read_h5": lambda path: read_h5(path, None),
    "parts": lambda path: load_segments(path, "train"),
    "parts on disk": lambda path: load_segments(path, "train", lazy=True)[0],
    "shards": lambda path: load_shards(path, "train"),
    "shards on disk": lambda path: load_shards(path, "train", lazy=True)[0],
    "stream": read_first,
}


def refused(read, path, words="refused: it would unpack to", most=16 * MEBIBYTE):
    with memory(most), pytest.raises(DataError, match=rf"{re.escape(path.name)}[^:]*: {words}"):
        read(path)


@pytest.mark.parametrize("read", READS_HDF5.values(), ids=READS_HDF5)
@pytest.mark.parametrize("key", ["data", "seg", "name"])
def test_a_chunk_of_an_hdf5_file_is_bounded(key, read, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["label"] = np.zeros(1, np.int64)
        content = {
            "data": np.ones((1, 64, 3), np.float32),
            "seg": np.zeros((1, 64), np.int64),
            "name": np.array([b"a"], "S1000"),
        }
        for name, values in content.items():
            options = {}
            if name == key:
                chunks = (1, 10**7, 3)[: values.ndim] if values.ndim > 1 else (200_000,)
                options = {"maxshape": (None,) * values.ndim, "chunks": chunks, "compression": "gzip"}
            file.create_dataset(name, data=values, **options)
    assert (tmp_path / "a.h5").stat().st_size < MEBIBYTE
    refused(read, tmp_path / "a.h5")


@pytest.mark.parametrize("read", READS_HDF5.values(), ids=READS_HDF5)
@pytest.mark.parametrize("key", ["data", "seg", "name"])
def test_an_hdf5_dataset_that_was_never_written_takes_no_memory(key, read, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["label"] = np.zeros(1, np.int64)
        shapes = {"data": (1, 64, 3), "seg": (1, 64), "name": (1,)}
        for name, shape in shapes.items():
            kind = "S8" if name == "name" else "u1"
            if name == key:
                shape = (1, 10**7, 3)[: len(shape)] if len(shape) > 1 else (10**8,)
            file.create_dataset(name, shape, kind)
    refused(read, tmp_path / "a.h5")


def test_the_size_of_an_hdf5_dataset_does_not_wrap_around(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["label"] = np.zeros(1, np.int64)
        file.create_dataset("data", (2**22, 2**22, 2**22), "f4", chunks=(1, 64, 3))
    refused(READS_HDF5["read_h5"], tmp_path / "a.h5")


@pytest.mark.parametrize("key", ["name", "classes", "split"])
@pytest.mark.parametrize("shape", [(3000,), (3000, 1), (1, 3000)])
def test_strings_that_are_stored_once_and_named_often_are_bounded(key, shape, tmp_path):
    count = shape[0] * shape[-1] if len(shape) > 1 else shape[0]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = np.random.default_rng(0).normal(size=(count, 4, 3)).astype(np.float32)
        file["label"] = np.zeros(count, np.int64)
        file["seg"] = np.zeros((count, 4), np.int64)
        names = file.create_dataset(key, (1,), h5py.string_dtype())
        names[0] = "x" * MEBIBYTE
        place = names.id.get_offset()
        many = file.create_dataset("many", shape, h5py.string_dtype())
        many[...] = "y"
        to = many.id.get_offset()
    content = bytearray((tmp_path / "a.h5").read_bytes())
    content[to : to + 16 * count] = content[place : place + 16] * count
    (tmp_path / "a.h5").write_bytes(content)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file[key]
        file.move("many", key)
    assert (tmp_path / "a.h5").stat().st_size < 3 * MEBIBYTE
    refused(READS_HDF5["parts"], tmp_path / "a.h5", most=300 * MEBIBYTE)
    if key == "name":
        refused(READS_HDF5["read_h5"], tmp_path / "a.h5", most=300 * MEBIBYTE)
    if key == "classes":
        refused(READS_HDF5["shards"], tmp_path / "a.h5", most=300 * MEBIBYTE)


def test_a_label_of_a_shard_is_bounded(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = np.random.default_rng(0).normal(size=(2, 64, 3)).astype(np.float32)
        file["label"] = np.array([0, 10**9])
    refused(READS_HDF5["shards"], tmp_path / "a.h5", "labels must be below 10000, got 1000000000")


def test_bytes_become_numbers_of_eight(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", points=np.zeros((3 * MEBIBYTE, 3), np.uint8))
    assert (tmp_path / "a.npz").stat().st_size < MEBIBYTE / 50
    refused(read_points, tmp_path / "a.npz")
    refused(READS_HDF5["parts"], tmp_path / "a.npz")


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def tar(path, *members, mode="w", **options):
    """A tar file of members given as (name, content, further fields of the header)."""
    with tarfile.open(path, mode, **options) as archive:
        for name, content, *fields in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for field, value in (fields[0] if fields else {}).items():
                setattr(member, field, value)
            archive.addfile(member, io.BytesIO(content))


READS_TAR = {"list": lambda path: [read_sample(sample) for sample in list_tar(path)], "stream": read_first}
SPARSE = "is a sparse member"


def old_sparse(path):
    """A member of 12 MB of which 512 bytes are stored, in GNU's old form."""
    header = bytearray(tarfile.TarInfo("a.npy").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"%011o\0" % 512
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:410] = b"%011o\0%011o\0" % (0, 512)
    header[483:495] = b"%011o\0" % (12 * MEBIBYTE)
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 256 + sum(header[156:512]))
    path.write_bytes(bytes(header) + npy(np.zeros((4 * MEBIBYTE - 64, 3), np.uint8))[:512] + bytes(1024))


def new_sparse(form):
    def write(path):
        attributes = {
            "0.0": {"GNU.sparse.size": str(12 * MEBIBYTE), "GNU.sparse.numblocks": "0"},
            "0.1": {"GNU.sparse.size": str(12 * MEBIBYTE), "GNU.sparse.map": "0,512"},
            "1.0": {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(12 * MEBIBYTE)},
        }[form]
        tar(path, ("a.npy", b"1\n0\n512\n".ljust(512, b"\0") + bytes(512), {"pax_headers": attributes}))

    return write


@pytest.mark.parametrize("read", READS_TAR.values(), ids=READS_TAR)
@pytest.mark.parametrize("write", [old_sparse, *map(new_sparse, ("0.0", "0.1", "1.0"))])
def test_a_sparse_member_of_a_tar_is_refused(write, read, tmp_path):
    write(tmp_path / "a.tar")
    refused(read, tmp_path / "a.tar", f"refused: 'a.npy' {SPARSE}")


@pytest.mark.parametrize("read", READS_TAR.values(), ids=READS_TAR)
@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_headers_of_a_tar_are_bounded(kind, read, tmp_path):
    long = ("long", b"x" * (2 * MEBIBYTE), {"type": kind})
    tar(tmp_path / "a.tar", long, ("a.npy", npy(np.eye(3))))
    refused(read, tmp_path / "a.tar", "refused: (2,097,152 bytes of global|a header of 2,097,152 bytes)", MEBIBYTE)


def test_attributes_of_all_members_are_bounded_together(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        for i in range(200):
            text = f"k{i}=" + "x" * 60000
            record = f"{len(text) + 7} {text}\n".encode()
            member = tarfile.TarInfo("attributes")
            member.type, member.size = tarfile.XGLTYPE, len(record)
            archive.addfile(member, io.BytesIO(record))
        archive.addfile(tarfile.TarInfo("a.txt"))
    refused(read_first, tmp_path / "a.tar.gz", "refused: [0-9,]+ bytes of global attributes", 40 * MEBIBYTE)


@pytest.mark.parametrize("read", READS_TAR.values(), ids=READS_TAR)
@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE])
def test_attributes_of_many_digits_are_refused(kind, read, tmp_path):
    tar(tmp_path / "a.tar", ("long", b"0" * 60000, {"type": kind}), ("a.npy", npy(np.eye(3))))
    refused(read, tmp_path / "a.tar", "refused: its attributes hold a number of more than 256 digits")


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_chain_of_headers_is_refused(kind, tmp_path):
    tar(tmp_path / "a.tar", *[("long", b"6 a=b\n", {"type": kind})] * 2000)
    for read in READS_TAR.values():
        with pytest.raises(DataError, match=r"a\.tar: cannot be read"):
            read(tmp_path / "a.tar")


def test_a_compressed_tar_grows_no_more_than_clouds_do(tmp_path):
    zeros = npy(np.zeros((4 * MEBIBYTE, 3), np.uint8))
    tar(tmp_path / "a.tar.gz", ("a.npy", zeros), mode="w:gz")
    # The library unpacks 10 KiB of it at once, and holds that twice or three times.
    refused(read_first, tmp_path / "a.tar.gz", most=48 * MEBIBYTE)
    tar(tmp_path / "b.tar.gz", ("b.npy", npy(np.random.default_rng(0).normal(size=(9, 3)))), mode="w:gz")
    read_first(tmp_path / "b.tar.gz")


def test_what_is_passed_over_in_a_compressed_tar_is_bounded_too(tmp_path):
    member = tarfile.TarInfo("other")
    member.size = 2**40
    with gzip.open(tmp_path / "a.tar.gz", "w") as file:
        file.write(member.tobuf() + bytes(4096))
    refused(read_first, tmp_path / "a.tar.gz")


@pytest.mark.parametrize("mode", ["w:bz2", "w:xz"])
def test_a_tar_is_unpacked_by_gzip_alone(mode, tmp_path):
    tar(tmp_path / "a.tar", ("other", bytes(8 * MEBIBYTE)), ("a.npy", npy(np.eye(3))), mode=mode)
    refused(read_first, tmp_path / "a.tar", "cannot be read")


@pytest.mark.parametrize("label", ["9" * 5000, "--5", "²", "1_000"])
def test_a_label_of_many_digits_is_a_name(label, tmp_path):
    tar(tmp_path / "a.tar", ("a.npy", npy(np.eye(3))), ("a.cls", label.encode()))
    assert [sample.label for sample in list_tar(tmp_path / "a.tar")] == [label]


def test_a_number_of_a_class_in_a_tar_is_bounded(tmp_path):
    tar(tmp_path / "a.tar", ("a.npy", npy(np.eye(3))), ("a.cls", b"1000000000"))
    refused(READS_HDF5["shards"], tmp_path / "a.tar", "labels must be below 10000, got 1000000000")


def ply(form, element, body=b""):
    head = f"ply\nformat {form} 1.0\nelement vertex 3\n" + "".join(f"property float {axis}\n" for axis in "xyz")
    points = b"0 0 0\n1 0 0\n0 1 0\n" if form == "ascii" else np.eye(3, dtype="<f4").tobytes()
    return f"{head}{element}end_header\n".encode() + points + body


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
@pytest.mark.parametrize(
    "element",
    [
        "element face 16000000\nproperty list uchar int vertex_indices\n",
        "element face 16000000\nproperty list int int vertex_indices\nproperty uchar red\n",
        "element edge 200000000\nproperty uchar a\n",
        "element other 200000000\n",
    ],
)
def test_rows_of_a_ply_are_bounded_by_its_size(form, element, tmp_path):
    (tmp_path / "a.ply").write_bytes(ply(form, element))
    refused(read_points, tmp_path / "a.ply", "cannot be read: it is cut off, up to the [0-9]+ rows of")


def test_empty_lists_of_a_ply_are_bounded(tmp_path):
    count = 3 * MEBIBYTE
    element = f"element face {count}\nproperty list uchar int vertex_indices\n"
    (tmp_path / "a.ply").write_bytes(ply("binary_little_endian", element, bytes(count)))
    refused(read_points, tmp_path / "a.ply")


def test_the_header_of_a_ply_is_bounded(tmp_path):
    (tmp_path / "a.ply").write_bytes(b"ply\nformat ascii 1.0\n" + b"element a 0\n" * 10**5 + b"end_header\n")
    refused(read_points, tmp_path / "a.ply", "has no header that ends within 65536 bytes")


def npy_of(shape, kind="<f4", version=1):
    file = io.BytesIO()
    write = np.lib.format.write_array_header_1_0 if version == 1 else np.lib.format.write_array_header_2_0
    write(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file.getvalue() + bytes(64)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("shape", "kind"), [((10**7, 3), "<f4"), ((2**40, 2**40), "<f8"), ((1, 3), "V99999999")])
def test_a_npy_header_is_bounded_by_its_file(shape, kind, version, tmp_path):
    content = npy_of(shape, kind, version)
    (tmp_path / "a.npy").write_bytes(content)
    refused(read_points, tmp_path / "a.npy", "cannot be read: it is cut off, ")
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("points.npy", content)
    refused(read_points, tmp_path / "a.npz", "cannot be read: it is cut off, ")
    tar(tmp_path / "a.tar", ("a.npy", content))
    refused(read_first, tmp_path / "a.tar", "cannot be read: it is cut off, ")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_of_arrays_is_unpacked_by_deflate_alone(method, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
        archive.writestr("points.npy", npy(np.eye(3)))
    refused(read_points, tmp_path / "a.npz", "refused: 'points.npy' is packed by method")


def aliases(levels, width=10):
    lines = ["a0: &a0 [1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels + 1)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (aliases(9) + "max_epoch: *a9\n", "its aliases unfold to more than 100,000 values"),
        ("a: &a [*a]\n", "the alias in line 1 holds itself"),
        ("a: &a " + "x" * 200_000 + "\nb: [" + "*a, " * 1000 + "]\n", "its aliases unfold to more than"),
        ("# " + "x" * MEBIBYTE + "\na: 1\n", "it has 1,048,584 bytes, at most 262,144 are read"),
    ],
)
def test_yaml_is_bounded_with_its_aliases_in_full(text, words, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    for read in (read_model_section, read_recipe):
        with memory(16 * MEBIBYTE), pytest.raises(ValueError, match=rf"a\.yaml is not YAML.*: {words}") as caught:
            read(tmp_path / "a.yaml")
        assert len(str(caught.value)) < 1000


def test_values_of_yaml_are_cut_in_messages(tmp_path):
    (tmp_path / "a.yaml").write_text(aliases(4) + "model: &m {NAME: PointTransformer}\nmax_epoch: *a4\n")
    assert read_model_section(tmp_path / "a.yaml") == {"NAME": "PointTransformer"}
    assert brief([["x" * 10**6] * 10**6] * 10**6).startswith("[['xxxx")
    assert len(brief({i: ["x" * 10**6] * 10 for i in range(1000)})) <= 300


def test_a_compressed_block_of_a_pcd_is_bounded(tmp_path):
    count = 10**6  # runs of 264 zeros in three bytes each
    packed = b"\0\0" + b"\xe0\xff\0" * (12 * count // 264 + 1)
    head = f"FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nPOINTS {count * 10}\nDATA binary_compressed\n".encode()
    sizes = np.array([len(packed), 12 * count * 10], "<u4").tobytes()
    (tmp_path / "a.pcd").write_bytes(head + sizes + packed)
    refused(read_points, tmp_path / "a.pcd")


def test_an_array_of_a_cache_that_is_named_often_is_bounded(tmp_path):
    cloud = np.random.default_rng(0).normal(size=(1000, 6))
    content = [[cloud] * 2000, [np.array([0])] * 2000]
    (tmp_path / "a.dat").write_bytes(pickle.dumps(content, 2))
    refused(
        lambda path: read_cache(path, 40),
        tmp_path / "a.dat",
        "cloud [0-9]+: refused: it would unpack to",
        128 * MEBIBYTE,
    )
