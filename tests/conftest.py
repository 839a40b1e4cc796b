"""Shared fixtures: devices, seeded generators, inputs cut out of larger tensors so that strides and offsets matter."""

import importlib.util
import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read once, when Triton is imported

from pointpeft.ops.core import library

# Processes of pytest-xdist share the cores among them.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, os.cpu_count() or 1))


# What trains, compiles, exports or starts other processes: folders, files and functions, as pytest names them.
SLOW = (
    "tests/backbones/test_frozen_end.py::test_a_step_compiles",
    "tests/backbones/test_masked_autoencoder.py::test_pretraining_lowers_the_loss",
    "tests/backbones/test_matrix.py",
    "tests/benchmarks/",
    "tests/checkpoints/test_adapter.py::test_an_adapter_comes_back_bit_for_bit",
    "tests/checkpoints/test_export.py",
    "tests/checkpoints/test_goldens.py",
    "tests/cli/commands/test_methods.py",
    "tests/cli/test_main.py",
    "tests/compat/test_install.py",
    "tests/compat/test_no_cuda.py",
    "tests/compat/test_published.py",
    "tests/csrc/",
    "tests/data/formats/test_hdf5.py::test_every_process_opens_files_of_its_own",
    "tests/data/sets/test_furniture.py::test_no_near_duplicate_across_the_split",
    "tests/data/test_on_demand.py",
    "tests/hardening/",
    "tests/heads/test_dense.py::test_widths_are_the_published_ones",
    "tests/heads/test_kernel_model.py::test_it_is_exported",
    "tests/methods/adapters/test_dapt.py",
    "tests/methods/adapters/test_sct.py::test_rooms_choose_channels_too",
    "tests/methods/adapters/test_sct.py::test_training_chooses_the_channels_and_the_adapter_holds_them",
    "tests/methods/prompts/test_memory_bank.py",
    "tests/methods/reparameterized/test_adalora.py::test_a_run_allocates_after_every_step",
    "tests/methods/test_changed_modules.py",
    "tests/methods/test_one_file.py",
    "tests/methods/test_outer_peft.py",
    "tests/methods/test_registry.py",
    "tests/methods/test_unfrozen_blocks.py",
    "tests/methods/test_variants.py",
    "tests/methods/test_written_weights.py",
    "tests/ops/core/test_triton_launch.py",
    "tests/ops/test_derivatives.py",
    "tests/recipes/",
    "tests/runs/",
    "tests/tasks/",
    "tests/test_architecture.py",
    "tests/test_benchmarks.py",
    "tests/test_build.py",
    "tests/test_checkout.py",
    "tests/test_compile.py",
    "tests/test_conftest.py::test_operations_and_their_tests_need_torch_and_pytest_alone",
    "tests/test_contributing.py",
    "tests/test_docs.py",
    "tests/test_readme.py",
    "tests/test_types.py",
    "tests/test_wheel.py",
    "tests/training/test_compiled_step.py",
    "tests/training/test_determinism.py",
    "tests/training/test_divergence.py",
    "tests/training/test_processes.py",
    "tests/training/test_tracking.py",
    "tests/view/",
)


def is_slow(nodeid):
    """Whether a test is, or lies in, one of `SLOW`."""
    return nodeid.startswith(SLOW)


def pytest_itemcollected(item):
    if is_slow(item.nodeid):
        item.add_marker(pytest.mark.slow)


def missing_kernels(has_gpu: bool, part: library.LibraryStatus) -> str | None:
    """Why a test marked `gpu` fails, or None: on a machine with a GPU it is not skipped for want of the kernels."""
    if not has_gpu or part.live:
        return None
    return f"there is a GPU, but no CUDA kernels for it: {part.reason}; {part.remedy}"


def is_marked(item, name):
    """Whether a test has a marker; keywords hold the names of folders as well, and a checkout may be called gpu."""
    return item.get_closest_marker(name) is not None


def pytest_runtest_setup(item):
    reason = missing_kernels(torch.cuda.is_available(), library.status_of("cuda"))
    if is_marked(item, "gpu") and reason is not None:
        pytest.fail(reason, pytrace=False)


def pytest_collection_modifyitems(config, items):
    has_gpu = torch.cuda.is_available()
    has_triton = importlib.util.find_spec("triton") is not None
    for item in items:
        if is_marked(item, "gpu") and not has_gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        if is_marked(item, "triton") and not has_triton:
            item.add_marker(pytest.mark.skip(reason="Triton is not installed"))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return torch.device(request.param)


@pytest.fixture
def clouds_folder(tmp_path):
    from tests.clouds import write_clouds  # reads HDF5, which a machine for the operations alone may not

    return write_clouds(tmp_path / "scans")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


CPU_LEVELS = ["portable", "avx2", "avx512", "amx"]


@pytest.fixture(params=CPU_LEVELS[:3])
def cpu_level(request, monkeypatch):
    """Runs a test on each vector level that this processor has; on AMX, which few kernels know, where it is asked for.

    `pytest.mark.parametrize("cpu_level", CPU_LEVELS, indirect=True)` asks.
    """
    from pointpeft import _C

    if CPU_LEVELS.index(request.param) > CPU_LEVELS.index(_C.supported_cpu_level()):
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setenv("POINTPEFT_CPU_LEVEL", request.param)
    return request.param


@pytest.fixture
def amx(monkeypatch):
    """Runs a test where the processor has AMX, and nothing hides it."""
    from pointpeft import _C

    if _C.supported_cpu_level() != "amx":
        pytest.skip("this processor has no AMX")
    monkeypatch.delenv("POINTPEFT_CPU_LEVEL", raising=False)


@pytest.fixture
def one_thread():
    """Runs a test on one thread; the number is as before after it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def cut(tensor: torch.Tensor) -> torch.Tensor:
    """The same values as a strided window of a larger tensor poisoned with NaN."""
    fill = float("nan") if tensor.is_floating_point() else -(10**6)
    big = torch.full([2 * size + 3 for size in tensor.shape], fill, dtype=tensor.dtype, device=tensor.device)
    window = big[tuple(slice(1, 1 + 2 * size, 2) for size in tensor.shape)]
    window.copy_(tensor)
    return window
