"""Calls of a pickle that copy an object of the file again and again: bounded by the size of the file."""

import pickle

import numpy as np
import pytest

from pointpeft.data import DataError
from pointpeft.data.formats.numpy_pickle import load_arrays
from tests.security.test_sizes import MEBIBYTE, refused

COUNT = 50_000


LIST = b"(" + b"N" * COUNT + b"t"
TEXT = b"X" + COUNT.to_bytes(4, "little") + b"x" * COUNT


@pytest.mark.parametrize(
    ("copied", "call", "arguments"),
    [
        (LIST, b"cbuiltins\nlist\n", b"h\0\x85"),
        (LIST, b"c__builtin__\nlist\n", b"h\0\x85"),
        (TEXT, b"cbuiltins\nlist\n", b"h\0\x85"),
        (b"](" + b"N" * COUNT + b"e", b"cbuiltins\ntuple\n", b"h\0\x85"),
        (TEXT, b"c_codecs\nencode\n", b"h\0X\6\0\0\0latin1\x86"),
    ],
)
def test_copies_of_one_object_are_bounded(copied, call, arguments, tmp_path):
    path = tmp_path / "a.dat"
    head = b"\x80\2" + copied + b"q\0" + b"0" + call + b"q\1" + b"0"
    path.write_bytes(head + b"](" + (b"h\1" + arguments + b"R") * COUNT + b"e.")
    assert path.stat().st_size < 2 * MEBIBYTE
    refused(load_arrays, path, most=512 * MEBIBYTE)


def test_a_shape_of_many_numbers_is_refused(tmp_path):
    content = np.zeros(3).__reduce__()
    make, arguments, state = content

    class Wide:
        def __reduce__(self):
            return make, arguments, (state[0], (1,) * 10_000, *state[2:])

    (tmp_path / "a.dat").write_bytes(pickle.dumps(Wide(), 2))
    with pytest.raises(DataError, match=r"a\.dat: is damaged: the shape of an array must be at most 64 numbers"):
        load_arrays(tmp_path / "a.dat")


@pytest.mark.parametrize("protocol", range(6))
def test_plain_containers_come_back(protocol, tmp_path):
    content = [[np.arange(6.0).reshape(2, 3), (1, 2)], [np.array([3])], np.float32(2)]
    (tmp_path / "a.dat").write_bytes(pickle.dumps(content, protocol))
    (array, pair), (label,), scalar = load_arrays(tmp_path / "a.dat")
    assert np.array_equal(np.asarray(array), content[0][0])
    assert (pair, scalar) == ((1, 2), 2)
    assert np.array_equal(np.asarray(label), [3])
