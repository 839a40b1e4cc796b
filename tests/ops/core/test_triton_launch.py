"""The Triton kernels compile for every architecture, and cost nothing where they are not launched."""

import importlib
import os
import subprocess
import sys

import pytest
import torch

from pointpeft.ops.core import triton_launch
from tests.ops.compile_kernels import ARCHS, CASES

KERNELS = ("_adapter_triton", "patch_embed", "scale_shift", "scale_shift_gelu")


@pytest.mark.triton
@pytest.mark.parametrize("name", CASES)
def test_kernels_compile_for_every_architecture(name):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.ops.compile_kernels", name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for arch in ARCHS:
        assert f"sm_{arch}: " in done.stdout


def test_blocks_are_powers_of_two_and_differ():
    modules = [importlib.import_module(f"pointpeft.ops.frozen.{name}") for name in KERNELS]
    kernels = {
        kernel for module in modules for kernel in vars(module).values() if isinstance(kernel, triton_launch.Kernel)
    }
    tuned = [kernel.configs for kernel in kernels if kernel.configs]
    assert len(tuned) == 9
    for configs in tuned:
        numbers = [number for blocks, warps, _ in configs for number in (*blocks.values(), warps)]
        assert all(number & (number - 1) == 0 for number in numbers)
        assert all(configs.count(config) == 1 for config in configs)


@pytest.mark.parametrize("allowed", [False, True])
def test_float32_is_multiplied_as_cublas_is_allowed_to(allowed):
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        assert triton_launch.precision(torch.float32) == ("tf32" if allowed else "ieee")
        assert {triton_launch.precision(dtype) for dtype in (torch.bfloat16, torch.float16)} == {"ieee"}
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_importing_pointpeft_imports_no_triton():
    code = "import sys, pointpeft.ops; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
