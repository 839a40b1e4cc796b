"""Which tests are skipped, fail or run on which machine, and what those of the operations may not need."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pointpeft.ops.core import library
from pointpeft.ops.core.library import LibraryStatus
from tests import conftest

ROOT = Path(__file__).resolve().parent.parent
ABSENT = (
    "accelerate",
    "h5py",
    "laspy",
    "matplotlib",
    "peft",
    "plyfile",
    "safetensors",
    "torchmetrics",
    "tqdm",
    "trimesh",
)
ABSENT += ("tyro", "yaml")

IMPORT_WITHOUT = f"""
import importlib, sys
for name in {ABSENT!r}:
    sys.modules[name] = None  # an import of it fails
import pointpeft.ops
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


LOADED, MISSING = LibraryStatus(True, "loaded", ""), LibraryStatus(False, "_cuda.so was not built", "install again")


def item(*marks, folder="tests"):
    """A test with markers, in a folder."""
    added = []
    return SimpleNamespace(
        keywords={folder, *marks},
        get_closest_marker=lambda name: name if name in marks else None,
        add_marker=added.append,
        added=added,
    )


def test_a_gpu_without_kernels_is_a_failure():
    assert conftest.missing_kernels(True, LOADED) is None
    assert conftest.missing_kernels(False, LOADED) is None
    assert conftest.missing_kernels(False, MISSING) is None
    assert "_cuda.so was not built; install again" in conftest.missing_kernels(True, MISSING)


def test_a_test_that_needs_a_gpu_fails_where_its_kernels_are_missing(monkeypatch):
    monkeypatch.setitem(library.LIBRARIES, "cuda", MISSING)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    on_gpu, elsewhere = item("gpu"), item()
    with pytest.raises(pytest.fail.Exception, match="there is a GPU, but no CUDA kernels for it"):
        conftest.pytest_runtest_setup(on_gpu)
    conftest.pytest_runtest_setup(elsewhere)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    conftest.pytest_runtest_setup(on_gpu)


def test_folder_called_gpu_leaves_out_no_test(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    items = [item(), item(folder="gpu"), item("gpu")]
    conftest.pytest_collection_modifyitems(None, items)
    assert [len(i.added) for i in items] == [0, 0, 1]


def test_operations_and_their_tests_need_torch_and_pytest_alone():
    pytest.importorskip("hypothesis")
    files = [*(ROOT / "tests" / "ops").rglob("test_*.py"), *(ROOT / "benchmarks").rglob("bench_*.py")]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted(files)]
    models = ("benchmarks.models.bench_dyt", "benchmarks.models.bench_training")
    names = ["tests.conftest", *(name for name in names if name not in models)]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_WITHOUT, *names], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
