"""Tests that need a GPU are skipped where there is none, and fail where there is one without kernels."""

from types import SimpleNamespace

import pytest
import torch

from pointpeft.ops.core import library
from pointpeft.ops.core.library import Part
from tests import conftest

LOADED, MISSING = Part(True, "loaded", ""), Part(False, "_cuda.so was not built", "install again")


def test_a_gpu_without_kernels_is_a_failure():
    assert conftest.missing_kernels(True, LOADED) is None
    assert conftest.missing_kernels(False, LOADED) is None
    assert conftest.missing_kernels(False, MISSING) is None
    assert "_cuda.so was not built; install again" in conftest.missing_kernels(True, MISSING)


def test_a_test_that_needs_a_gpu_fails_where_its_kernels_are_missing(monkeypatch):
    monkeypatch.setitem(library.PARTS, "cuda", MISSING)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    on_gpu, elsewhere = SimpleNamespace(keywords={"gpu"}), SimpleNamespace(keywords=set())
    with pytest.raises(pytest.fail.Exception, match="there is a GPU, but no CUDA kernels for it"):
        conftest.pytest_runtest_setup(on_gpu)
    conftest.pytest_runtest_setup(elsewhere)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    conftest.pytest_runtest_setup(on_gpu)
