"""The harness of the benchmarks: what it times, and what it refuses to time."""

from types import SimpleNamespace

import pytest

from benchmarks import conftest


def row(**params):
    """A request for one row of a benchmark."""
    return SimpleNamespace(node=SimpleNamespace(name="bench_row", callspec=SimpleNamespace(params=params)))


def test_row_of_ours_on_the_reference_fails(monkeypatch):
    monkeypatch.setenv("POINTPEFT_BACKEND", "reference")
    with pytest.raises(pytest.fail.Exception, match="bench_row would run on plain PyTorch: POINTPEFT_BACKEND"):
        conftest.require_compiled(row(name="pointpeft", device="cpu"), "cpu")
    conftest.require_compiled(row(name="reference"), "cpu")


def test_row_of_ours_on_compiled_operations_is_timed():
    conftest.require_compiled(row(name="pointpeft"), "cpu")


def test_device_option_leaves_out_the_rows_of_the_other_device():
    rows = [SimpleNamespace(callspec=SimpleNamespace(params={"device": d})) for d in ("cpu", "cuda")]
    rows.append(SimpleNamespace())
    left_out = []
    hook = SimpleNamespace(pytest_deselected=lambda items: left_out.extend(items))
    for device, expected in ((None, rows), ("cpu", rows[::2]), ("cuda", rows[1:2])):
        items = list(rows)
        conftest.pytest_collection_modifyitems(SimpleNamespace(getoption=lambda _, d=device: d, hook=hook), items)
        assert items == expected
