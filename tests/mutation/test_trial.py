"""A fault is judged by tests that pass without it, in a copy of the tree."""

from collections import Counter

import pytest

from tests.mutation import trial
from tests.mutation.__main__ import Counts, left
from tests.mutation.sites import python_sites
from tests.mutation.trial import NOT_JUDGED, REGRESSIONS, SURVIVED, NotJudged, Trial

SITE = python_sites("pointpeft/ops/knn.py")[0]


def test_tests_that_look_for_files_pass_in_the_copy(tmp_path):
    # This one looks for a benchmark of every operation.
    assert Trial(tmp_path)._test(("tests/ops/test_symmetry.py",)) == 0


def test_a_fault_whose_tests_fail_without_it_is_not_judged_and_the_rest_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "tests_of", lambda file: ("tests/ops/test_knn.py",))
    tried = Trial(tmp_path)
    (tmp_path / "tests/ops/test_knn.py").write_text("def test_no():\n    assert 1 + 1 == 3\n")
    source = (tmp_path / SITE.file).read_bytes()
    with pytest.raises(NotJudged, match=r"tests end with 1 without any fault too: tests/ops/test_knn\.py") as error:
        tried.outcome(SITE)
    assert "assert (1 + 1) == 3" in str(error.value)
    assert REGRESSIONS in str(error.value)
    assert (tmp_path / SITE.file).read_bytes() == source

    counts = Counts(0, Counter())
    counts.add(SITE, NOT_JUDGED, str(error.value))
    counts.add(python_sites("pointpeft/ops/knn.py")[1], SURVIVED)
    report = counts.report()
    assert (report["cases"], report["failed"]) == (1, 2)
    assert "assert (1 + 1) == 3" in report["failures"][0]["why"]
    assert SITE in left(report)


def test_what_a_failed_build_has_removed_is_put_back(tmp_path):
    tried = Trial(tmp_path / "copy")
    tried.built = tmp_path / "built"
    for folder in (tried.built, tmp_path / "copy/build/ninja"):
        folder.mkdir(parents=True)
    for name in ("_cpu.so", "knn.cpp.o"):
        (tried.built / name).write_text("sound")
    (tmp_path / "copy/pointpeft/_cpu.so").write_text("faulty")
    tried._put_back()
    assert (tmp_path / "copy/pointpeft/_cpu.so").read_text() == "sound"
    assert (tmp_path / "copy/build/ninja/knn.cpp.o").read_text() == "sound"
