"""Faults put into the kernels are noticed: all by `python -m tests.csrc.faults`, two here."""

import os
import shutil

import pytest

from tests.csrc import faults


@pytest.mark.parametrize("fault", faults.FAULTS, ids=lambda fault: f"{fault.operation}: {fault.name}")
def test_the_text_that_a_fault_replaces_stands_once(fault):
    changed = [name for name, text in faults.damaged(fault).items() if text != faults.translation.sources()[name]]
    assert len(changed) == 1


@pytest.mark.skipif(shutil.which("g++") is None and "CXX" not in os.environ, reason="no g++")
@pytest.mark.parametrize(
    ("name", "message"), [("barrier before a tile", "race in shared memory"), ("tie to the last", "differs")]
)
def test_a_fault_is_noticed(name, message, one_thread):
    fault = next(fault for fault in faults.FAULTS if (fault.operation, fault.name) == ("chamfer_distance", name))
    noticed = faults.notice(fault)
    assert noticed is not None
    assert message in noticed[1]
