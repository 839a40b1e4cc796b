import pytest

from tests.hardening.endurance import predicted, trained


@pytest.mark.parametrize("task", [trained, predicted])
def test_a_short_run_measures_every_step_and_leaves_no_file_open(task, tmp_path):
    report = task(20, tmp_path)
    assert report["done"] == 20
    assert len(report["memory MiB"]) == len(report["open files"]) == 20
    assert min(report["memory MiB"]) > 0
    assert report["open files growth"] == 0
