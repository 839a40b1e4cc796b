"""The Triton kernels compile for every architecture within its bounds, and cost nothing where they are not launched."""

import importlib
import os
import re
import subprocess
import sys
import threading
import time

import pytest
import torch

from pointpeft.ops.core import triton_launch
from pointpeft.ops.frozen import _adapter, _adapter_triton

MODULES = ("_adapter_triton", "patch_embed", "scale_shift")
# A part of the product that `python -m tests.ops.compile_kernels --all` compiles, about a second a configuration.
SLICES = (
    "adapters --ranks 16 --flags 2 --dtypes bf16 --archs 90",
    "adapters --ranks 64 --flags 1 --dtypes bf16 --archs 80",
    "adapters --ranks 64 --flags 1 --dtypes fp32 --archs 120",
    "patch_embed --dtypes bf16 --archs 90",
    "scale_shift --dtypes fp32 --archs 100",
)


def kernels():
    """Every kernel that is launched."""
    modules = [importlib.import_module(f"pointpeft.ops.frozen.{name}") for name in MODULES]
    found = {
        kernel for module in modules for kernel in vars(module).values() if isinstance(kernel, triton_launch.Kernel)
    }
    return [kernel for kernel in found if kernel.configs]


@pytest.mark.triton
@pytest.mark.parametrize("options", SLICES)
def test_every_configuration_compiles_within_bounds(options):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("TRITON_", "POINTPEFT_"))}
    command = [sys.executable, "-m", "tests.ops.compile_kernels", *options.split()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    built = re.findall(r"Built\(kernel='(\w+)'", done.stdout)
    assert len(built) >= 4
    assert "FAULT" not in done.stdout


def test_blocks_are_powers_of_two_and_differ():
    tuned = {kernel.function.__module__.rpartition(".")[2]: kernel.configs for kernel in kernels()}
    assert tuned.keys() == set(MODULES)
    for configs in [kernel.configs for kernel in kernels()]:
        numbers = [number for blocks, warps, _ in configs for number in (*blocks.values(), warps)]
        assert all(number & (number - 1) == 0 for number in numbers)
        assert all(configs.count(config) == 1 for config in configs)


def test_every_rank_that_the_kernels_hold_has_a_configuration():
    adapters = [kernel for kernel in kernels() if kernel.function.__module__.endswith("_adapter_triton")]
    assert len(adapters) == 3
    for kernel in adapters:
        limit = _adapter_triton.MAX_RANK_SUMS if kernel is _adapter_triton._weight_kernel else _adapter_triton.MAX_RANK
        for rank in range(1, limit + 1):
            assert kernel.suitable({"RP": triton_launch.power_of_two(rank), "PRECISION": "ieee"})


def test_every_patch_that_the_kernels_hold_has_a_configuration():
    module = importlib.import_module("pointpeft.ops.frozen.patch_embed")
    sizes = [(size, width) for size in range(1, 200) for width in (1, 16, 128, 200, 256, 512, 1024)]
    held = [size for size in sizes if module._held(*size)]
    assert (128, 128) in held
    assert (64, 256) in held
    for size, width in held:
        constants = {"SP": triton_launch.power_of_two(size), "HP": triton_launch.power_of_two(width)}
        assert module._top_kernel.suitable(constants)
        assert module._token_kernel.suitable(constants)


@pytest.fixture
def float32_switches():
    """PyTorch's switches of float32 products are as before after a test."""
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.fp32_precision = "none"
    torch.backends.cuda.matmul.fp32_precision = "none"


def set_attribute(owner, name, value):
    setattr(owner, name, value)


MATMUL = torch.backends.cuda.matmul


@pytest.mark.parametrize(
    ("switch", "expected"),
    [
        (lambda: None, "tf32x3"),
        (lambda: set_attribute(MATMUL, "fp32_precision", "tf32"), "tf32"),
        (lambda: set_attribute(MATMUL, "fp32_precision", "ieee"), "tf32x3"),
        (lambda: set_attribute(torch.backends, "fp32_precision", "tf32"), "tf32"),
        (lambda: set_attribute(torch.backends, "fp32_precision", "ieee"), "tf32x3"),
        (lambda: set_attribute(MATMUL, "allow_tf32", True), "tf32"),
        (lambda: set_attribute(MATMUL, "allow_tf32", False), "tf32x3"),
        (lambda: torch.set_float32_matmul_precision("high"), "tf32"),
        (lambda: torch.set_float32_matmul_precision("highest"), "tf32x3"),
    ],
)
def test_float32_is_multiplied_as_cublas_is_allowed_to(switch, expected, float32_switches):
    switch()
    assert triton_launch.precision(torch.float32) == expected
    assert {triton_launch.precision(dtype) for dtype in (torch.bfloat16, torch.float16)} == {"ieee"}


class Recorder:
    """In the place of a `triton.jit` function: keeps what is launched, with the grid and the current device."""

    def __init__(self, device=lambda: 0):
        self.launches = []
        self.refused = ()
        self.device = device

    def __getitem__(self, grid):
        def launch(*args, **constants):
            if constants["num_warps"] in self.refused:
                errors = pytest.importorskip("triton.runtime.errors")
                raise errors.OutOfResources(300_000, 232_448, "shared memory")
            self.launches.append((grid(constants), constants, self.device()))

        return launch


def compiling(monkeypatch):
    """Launches take the way of compiled kernels, and no time to choose."""
    pytest.importorskip("triton")  # as an interpreter or not, which is settled when it is imported
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("POINTPEFT_AUTOTUNE", "first")


@pytest.fixture
def recorders(monkeypatch):
    """No kernel is compiled: its launches are recorded, and the first configuration that fits is taken."""
    compiling(monkeypatch)
    recorded = {}
    for kernel in kernels():
        recorded[kernel] = Recorder()
        monkeypatch.setitem(kernel.__dict__, "jitted", recorded[kernel])
        monkeypatch.setattr(kernel, "chosen", {})
    return recorded


def adapter_inputs(batch, tokens, c, rank, dtype=torch.bfloat16):
    sizes = [(batch, tokens, c), (c,), (c,), (1, c), (1,), (rank, c), (rank,), (c, rank), (c,)]
    return [torch.zeros(size, dtype=dtype) for size in sizes]


def test_the_number_of_tokens_has_no_limit(recorders):
    inputs = adapter_inputs(2, 1_100_000, 1, 1)
    _adapter_triton.launch(*inputs, None, 1e-5, 0.0, False)
    _adapter_triton.launch_backward(inputs[0], None, *inputs, None, 1e-5, 0.0)
    for kernel in (_adapter_triton._forward_kernel, _adapter_triton._backward_kernel, _adapter_triton._weight_kernel):
        ((first, *others), _, _) = recorders[kernel].launches[0]
        assert first < 2**31
        assert all(size < 2**16 for size in others)


@pytest.mark.parametrize("name", ["_forward_kernel", "_backward_kernel", "_weight_kernel"])
def test_neighbouring_numbers_of_tokens_share_a_choice_and_flags_do_not(name, recorders, monkeypatch):
    kernel = getattr(_adapter_triton, name)
    choices = []
    first = kernel._first_that_fits
    monkeypatch.setattr(kernel, "_first_that_fits", lambda *given: choices.append(0) or first(*given))

    def launch(batch, tokens, rank, prompt=False, seed=None):
        x, *weights = adapter_inputs(batch, tokens, 8, rank)
        grad_prompt = torch.zeros(batch, 8, dtype=x.dtype) if prompt else None
        _adapter_triton.launch(x, *weights, seed, 1e-5, 0.0, prompt)
        _adapter_triton.launch_backward(x, grad_prompt, x, *weights, seed, 1e-5, 0.0)

    for batch in (2, 3):
        for tokens in (129, 135, 140):
            launch(batch, tokens, 4)
    assert len(choices) == 1
    launch(2, 129, 4, prompt=True)
    assert len(choices) == 2
    launch(2, 129, 64)
    assert len(choices) == 3
    assert len(recorders[kernel].launches) == 8


def test_the_first_configuration_that_fits_is_taken(recorders):
    kernel = _adapter_triton._forward_kernel
    inputs = adapter_inputs(1, 5, 8, 4)
    recorders[kernel].refused = (4,)
    for _ in range(2):
        _adapter_triton.launch(*inputs, None, 1e-5, 0.0, False)
    assert [constants["num_warps"] for _, constants, _ in recorders[kernel].launches] == [8, 8]
    kernel.chosen.clear()
    recorders[kernel].refused = (4, 8)
    with pytest.raises(Exception, match="shared memory, Required: 300000"):
        _adapter_triton.launch(*inputs, None, 1e-5, 0.0, False)


def test_the_switch_of_autotuning_is_checked(monkeypatch):
    monkeypatch.setenv("POINTPEFT_AUTOTUNE", "second")
    with pytest.raises(ValueError, match="POINTPEFT_AUTOTUNE must be time or first, got 'second'"):
        triton_launch.takes_first_config()


class OnSecondDevice(torch.Tensor):
    """A tensor that says it is on cuda:1."""

    is_cuda = True

    def get_device(self):
        return 1


def test_kernels_are_launched_on_the_device_of_their_tensors(monkeypatch):
    current = [0]

    def exchange(device):
        before, current[0] = current[0], device if device >= 0 else current[0]
        return before

    monkeypatch.setattr(torch.cuda, "_exchange_device", exchange)
    monkeypatch.setattr(torch.cuda, "_maybe_exchange_device", exchange)
    compiling(monkeypatch)
    kernel = triton_launch.kernel([({"BLOCK": 16}, 4, 1)], key=[])(lambda x, BLOCK: None)
    kernel.__dict__["jitted"] = Recorder(lambda: current[0])
    for _ in range(2):  # the first launch chooses
        kernel.launch(lambda meta: (1,), torch.zeros(4).as_subclass(OnSecondDevice))
        kernel.launch(lambda meta: (1,), torch.zeros(4))
    assert [device for _, _, device in kernel.jitted.launches] == [1, 0, 1, 0]
    assert current == [0]


def test_threads_choose_one_after_the_other_and_once(monkeypatch):
    compiling(monkeypatch)
    kernel = triton_launch.kernel([({"BLOCK": 16}, 4, 1)], key=[])(lambda x, BLOCK: None)
    kernel.__dict__["jitted"] = Recorder()
    inside, most, choices = [], [], []
    first = kernel._first_that_fits

    def choose(*given):
        inside.append(0)
        most.append(len(inside))
        choices.append(0)
        time.sleep(0.05)  # the others come meanwhile
        inside.pop()
        return first(*given)

    monkeypatch.setattr(kernel, "_first_that_fits", choose)
    threads = [
        threading.Thread(target=kernel.launch, args=(lambda meta: (1,), torch.zeros(4, dtype=dtype)))
        for dtype in (torch.float32, torch.bfloat16) * 4
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kernel.jitted.launches) == 8
    assert len(choices) == 2
    assert max(most) == 1


@pytest.mark.parametrize(("dtype", "rank"), [(torch.float32, 65), (torch.bfloat16, 257)])
def test_a_rank_that_no_program_holds_is_composed_and_said_once(dtype, rank, recorders):
    inputs = adapter_inputs(1, 3, 8, rank, dtype)
    with pytest.warns(RuntimeWarning, match=f"an adapter of rank {rank} in {dtype} runs in plain PyTorch on CUDA"):
        a, _ = _adapter._cuda(*inputs, None, 1e-5, 0.0, False)
    grads = _adapter._cuda_backward(a, None, *inputs, None, 1e-5, 0.0)
    assert [g.shape for g in grads] == [t.shape for t in inputs]
    assert not any(recorder.launches for recorder in recorders.values())


def test_importing_pointpeft_imports_no_triton():
    code = "import sys, pointpeft.ops; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
