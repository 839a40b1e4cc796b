"""A slice of the fuzzers for every run of the tests; the nightly commands run long."""

import os

import pytest
import torch

from pointpeft import ops
from pointpeft.ops.core import library
from tests.hardening.fuzz import cuda_path, fused_cases, point_cases, raw  # noqa: F401
from tests.hardening.fuzz.case import CASES
from tests.hardening.fuzz.draw import Draw
from tests.hardening.fuzz.driver import run
from tests.ops import interpreter

SECONDS = float(os.environ.get("POINTPEFT_FUZZ_SECONDS", "15"))  # for each fuzzer


def test_every_operation_has_a_case():
    public = {name for name in ops.__all__ if callable(getattr(ops, name)) and f"{name}_reference" in ops.__all__}
    assert set(CASES) == public


def test_every_registered_operation_is_called_raw():
    called = set(raw.RAW)
    for name in CASES:
        for number in range(40):
            called |= {op._schema.name.split("::")[1] for op, _ in raw.recorded(Draw(name, number), name)}
    # Tests of torch.library may have registered operations of their own in this process.
    assert {name for name in raw.names() if hasattr(torch.ops.pointpeft, name)} - raw.ON_CUDA_ALONE == called


def test_every_answer_for_cuda_that_is_python_is_tried():
    written = {name.removeprefix("pointpeft::") for name in library.FUSED._op_defs}
    assert {name for name in written if "attention" not in name} == set(cuda_path.ANSWERS)


@pytest.mark.parametrize(
    ("module", "outcomes"),
    [
        ("tests.hardening.fuzz.ops", {"equal", "refused"}),
        ("tests.hardening.fuzz.raw", {"answered", "refused", "compiled", "not compiled", "nothing to call"}),
        ("tests.hardening.fuzz.readers", {"read", "refused"}),
        pytest.param("tests.hardening.fuzz.cuda_path", {"equal", "refused"}, marks=pytest.mark.triton),
    ],
)
def test_every_case_ends_in_a_right_result_or_a_clear_error(module, outcomes):
    if module.endswith("cuda_path") and (reason := interpreter.fault_in_a_process()):
        pytest.skip(reason)
    report = run(module, seed=0, seconds=SECONDS, cases=None, first=0, patience=120.0)
    assert not report["failures"], report["failures"][0]
    assert report["cases"] >= 10
    assert set(report["outcomes"]) <= outcomes
