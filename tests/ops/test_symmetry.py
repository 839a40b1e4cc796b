"""One operation, one name, everywhere: csrc, pointpeft/ops, tests, benchmarks."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
OPS = sorted(path.stem for path in (ROOT / "pointpeft" / "ops").glob("[a-z]*.py"))
COMPILED = sorted(path.stem for path in (ROOT / "csrc").glob("[a-z]*.cpp") if path.stem != "module")


def test_there_are_operations():
    assert "furthest_point_sample" in OPS


@pytest.mark.parametrize("op", OPS)
def test_an_operation_has_its_test_and_benchmark(op):
    assert (ROOT / "tests" / "ops" / f"test_{op}.py").is_file()
    assert (ROOT / "benchmarks" / f"bench_{op}.py").is_file()


@pytest.mark.parametrize("op", OPS)
def test_an_operation_has_its_reference(op):
    import pointpeft.ops

    assert callable(getattr(pointpeft.ops, op))
    assert callable(getattr(pointpeft.ops, f"{op}_reference"))


@pytest.mark.parametrize("op", COMPILED)
def test_a_compiled_operation_has_all_its_files(op):
    assert op in OPS
    assert (ROOT / "csrc" / f"{op}.cu").is_file()
