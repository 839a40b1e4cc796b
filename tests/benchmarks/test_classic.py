"""The restated extensions compile: whether they are right is checked where a GPU times them."""

import pytest

from benchmarks import classic

needs_nvcc = pytest.mark.skipif(classic.find_nvcc() is None, reason="no nvcc")


@needs_nvcc
def test_it_compiles_once(tmp_path):
    library = classic.build(tmp_path, "90")
    built = library.read_bytes()
    for name in (b"pointpeft_classic", b"sampling_kernel", b"ball_kernel", b"insertion_kernel"):
        assert name in built
    written = library.stat().st_mtime_ns
    assert classic.build(tmp_path, "90") == library
    assert library.stat().st_mtime_ns == written
    assert [path.name for path in tmp_path.iterdir()] == [library.name]


def test_without_nvcc_it_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(classic, "find_nvcc", lambda: None)
    with pytest.raises(FileNotFoundError, match="nvcc on PATH or in CUDA_HOME/bin"):
        classic.build(tmp_path, "90")
