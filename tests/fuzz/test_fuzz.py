"""A slice of the fuzzers for every run of the tests; the nightly commands run long."""

import os

import pytest

from tests.fuzz.driver import run

SECONDS = float(os.environ.get("POINTPEFT_FUZZ_SECONDS", "15"))  # for each fuzzer


@pytest.mark.parametrize(
    ("module", "outcomes"),
    [("tests.fuzz.ops", {"equal", "refused"}), ("tests.fuzz.readers", {"read", "refused"})],
)
def test_every_case_ends_in_a_right_result_or_a_clear_error(module, outcomes):
    report = run(module, seed=0, seconds=SECONDS, cases=None, first=0, patience=120.0)
    assert not report["failures"], report["failures"][0]
    assert report["cases"] >= 10
    assert set(report["outcomes"]) <= outcomes
