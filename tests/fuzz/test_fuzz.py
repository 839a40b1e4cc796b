"""A slice of the fuzzers for every run of the tests; the nightly commands run long."""

import os

import pytest

from pointpeft import ops
from tests.fuzz import fused_cases, point_cases  # noqa: F401
from tests.fuzz.case import CASES
from tests.fuzz.driver import run

SECONDS = float(os.environ.get("POINTPEFT_FUZZ_SECONDS", "15"))  # for each fuzzer


def test_every_operation_has_a_case():
    public = {name for name in ops.__all__ if callable(getattr(ops, name)) and f"{name}_reference" in ops.__all__}
    assert set(CASES) == public


@pytest.mark.parametrize(
    ("module", "outcomes"),
    [("tests.fuzz.ops", {"equal", "refused"}), ("tests.fuzz.readers", {"read", "refused"})],
)
def test_every_case_ends_in_a_right_result_or_a_clear_error(module, outcomes):
    report = run(module, seed=0, seconds=SECONDS, cases=None, first=0, patience=120.0)
    assert not report["failures"], report["failures"][0]
    assert report["cases"] >= 10
    assert set(report["outcomes"]) <= outcomes
