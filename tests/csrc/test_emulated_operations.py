"""Every CUDA operation, emulated, against its definition: a slice of `python -m tests.csrc.emulated`."""

import os
import re
import shutil
from pathlib import Path

import pytest

from tests.csrc.cases import OPERATIONS
from tests.csrc.emulated import draw_case, run_case
from tests.csrc.emulation import translation

pytestmark = pytest.mark.skipif(shutil.which("g++") is None and "CXX" not in os.environ, reason="no g++")
CASES = {
    "gather": 30,
    "ball_query": 20,
    "knn": 24,
    "furthest_point_sample": 40,
    "aggregate_neighbors": 50,
    "chamfer_distance": 24,
    "sample_and_group": 10,
}


def test_every_cuda_operation_has_cases():
    kernels = {name: text for name, text in translation.sources().items() if name.endswith(".cu")}
    assert {Path(name).stem for name in kernels} == set(OPERATIONS) == set(CASES)
    registered = {name for text in kernels.values() for name in re.findall(r'm\.impl\("(\w+)"', text)}
    assert {draw_case(operation, 0, number).operation for operation in OPERATIONS for number in range(8)} == registered


@pytest.mark.parametrize("operation", OPERATIONS)
def test_random_cases_equal_the_definition(operation, one_thread):
    for number in range(CASES[operation]):
        case = draw_case(operation, 0, number)
        assert (wrong := run_case(case, number)) is None, f"{case}: {wrong}"
