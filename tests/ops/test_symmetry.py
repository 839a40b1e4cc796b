"""One operation, one name, everywhere: csrc, pointpeft/ops, tests, benchmarks."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
FAMILIES = ("points", "frozen")
OPS = {path.stem: family for family in FAMILIES for path in sorted((ROOT / "pointpeft/ops" / family).glob("[a-z]*.py"))}
COMPILED = {path.stem: path for family in FAMILIES for path in sorted((ROOT / "csrc" / family).rglob("[a-z]*.cpp"))}


def test_there_are_operations():
    assert "furthest_point_sample" in OPS


@pytest.mark.parametrize("op", OPS)
def test_an_operation_has_its_test_and_benchmark(op):
    assert (ROOT / "tests" / "ops" / OPS[op] / f"test_{op}.py").is_file()
    assert (ROOT / "benchmarks" / OPS[op] / f"bench_{op}.py").is_file()


@pytest.mark.parametrize("op", OPS)
def test_an_operation_has_its_reference(op):
    import pointpeft.ops

    assert callable(getattr(pointpeft.ops, op))
    assert callable(getattr(pointpeft.ops, f"{op}_reference"))


@pytest.mark.parametrize("op", COMPILED)
def test_a_compiled_operation_has_all_its_files(op):
    assert op in OPS
    assert COMPILED[op].parent == ROOT / "csrc" / OPS[op] / op
    assert COMPILED[op].with_suffix(".cu").is_file()
