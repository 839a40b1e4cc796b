"""Compiles the Triton kernels that operations launch, for GPUs that need not be there, and bounds what they take.

`python -m tests.ops.compile_kernels adapters` launches them on CPU tensors through Triton's own autotuner with a driver
that only compiles (`tests.ops.stub_gpu`): every configuration, for a few shapes and flags on one architecture.
Shapes, flags, dtypes and architectures are chosen by options; `--all` takes the whole product (hours).
A process of its own, because Triton once imported as an interpreter cannot compile.
"""

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import torch

from tests.ops.stub_gpu import SHARED_LIMIT, Built, StubGpu

ARCHS = (80, 90, 100, 120)
RANKS = (1, 3, 8, 16, 64, 128, 256)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FLAGS = ("prompt", "dropout")
MAX_STACK = 64
"""Bytes a thread: a kernel that spills more than sixteen registers is slower than its memory traffic makes it."""


class Case(NamedTuple):
    """One call of a launcher, and what it is called with."""

    name: str
    call: Callable[[], object]


def patch_embed(dtype: torch.dtype, asked: argparse.Namespace) -> Iterator[Case]:
    import pointpeft.ops  # noqa: F401

    if dtype == torch.float32:
        return  # composed of PyTorch's operations
    module = sys.modules["pointpeft.ops.frozen.patch_embed"]
    widths = [(128, 256, 512, 384), (20, 33, 40, 30), (256, 512, 1024, 768)] if asked.all else [(128, 256, 512, 384)]
    for (h1, h2, h3, c), size in itertools.product(widths, (1, 7, 32, 33, 64, 128) if asked.all else (32,)):
        if not module._held(size, h1):
            continue
        shapes = [(2, 8, size, 3), (h1, 3), (h1,), (h2, h1), (h2,), (h3, 2 * h2), (h3,), (c, h3), (c,)]
        tensors = [torch.zeros(s, dtype=dtype) for s in shapes]
        yield Case(f"patch_embed S={size} H1={h1}", lambda tensors=tensors: module._launch(*tensors))


def adapters(dtype: torch.dtype, asked: argparse.Namespace) -> Iterator[Case]:
    from pointpeft.ops.frozen import _adapter_triton

    some = [(True, True), (False, False), (True, False)]
    flags = [*itertools.product([True, False], repeat=len(FLAGS))] if asked.all else some[: asked.flags]
    c = 384
    limit = _adapter_triton.MAX_RANK_FLOAT32 if dtype == torch.float32 else _adapter_triton.MAX_RANK
    ranks = [rank for rank in asked.ranks if rank <= limit]
    for rank, (prompt, dropout) in itertools.product(ranks, flags):
        sizes = [(c,), (c,), (1, c), (1,), (rank, c), (rank,), (c, rank), (c,)]
        weights = [torch.zeros(s, dtype=dtype) for s in sizes]
        x, grad_prompt = torch.zeros(2, 129, c, dtype=dtype), torch.zeros(2, c, dtype=dtype) if prompt else None
        given = (x, *weights, torch.tensor(1) if dropout else None, 1e-5, 0.1)

        def call(given=given, prompt=prompt, grad_prompt=grad_prompt):
            _adapter_triton.launch(*given, prompt)
            _adapter_triton.launch_backward(given[0], grad_prompt, *given)

        on = [flag for flag, there in zip(FLAGS, (prompt, dropout), strict=True) if there]
        yield Case(f"adapter R={rank} {'+'.join(on)}", call)


def scale_shift(dtype: torch.dtype, asked: argparse.Namespace) -> Iterator[Case]:
    import pointpeft.ops  # noqa: F401

    module = sys.modules["pointpeft.ops.frozen.scale_shift"]
    for c in (1, 33, 384) if asked.all else (384,):
        x, scale = torch.zeros(100, c, dtype=dtype), torch.zeros(c, dtype=dtype)
        yield Case(f"scale_shift C={c}", lambda x=x, s=scale: module._launch(x, s, s))
        yield Case(f"scale_shift C={c} backward", lambda x=x, s=scale: module._launch_backward(x, x, s))


CASES = {case.__name__: case for case in [patch_embed, adapters, scale_shift]}


def check(built: Built) -> str:
    """What is wrong with a compiled kernel; nothing where it is within the bounds."""
    if built.stack > MAX_STACK:
        return f"has a stack of {built.stack} bytes, more than {MAX_STACK}"
    if built.registers * built.warps * 32 > 65536:
        return f"needs {built.registers} registers in each of {built.warps * 32} threads, more than there are"
    return ""


def _written(arch: int) -> Iterator[tuple[str, str]]:
    """Name and PTX of all kernels that were compiled for an architecture."""
    for kernel in _kernels():
        if kernel.chosen:
            for compiled in kernel.jitted.device_caches[arch][0].values():
                yield kernel.function.__name__, compiled.asm["ptx"]


def _kernels() -> set[Any]:
    """All kernels of the modules that are imported."""
    from pointpeft.ops.core import triton_launch

    modules = [module for name, module in sys.modules.items() if name.startswith("pointpeft.ops.frozen.")]
    return {v for module in modules for v in vars(module).values() if isinstance(v, triton_launch.Kernel)}


@cache
def _gpu(arch: int) -> StubGpu:
    """One for each architecture: what Triton compiled earlier is launched on the GPU that it was compiled for."""
    gpu = StubGpu(arch)
    gpu.device = arch  # Triton and pointpeft keep what they compiled by device
    return gpu


def compile_case(case: Case, arch: int) -> int:
    """Compiles for an architecture whatever a call may launch; gives the number of faults, each printed."""
    from triton.runtime import driver

    from pointpeft.ops.core import triton_launch

    gpu = _gpu(arch)
    driver.set_active(gpu)
    for log in (gpu.built, gpu.launches, gpu.refused):
        log.clear()
    for kernel in _kernels():
        kernel.chosen.clear()  # by the number of the device, which CPU tensors do not have: every GPU chooses anew
    begin = time.perf_counter()
    case.call()
    assert gpu.launches, f"{case.name} launched nothing"
    faults = 0
    for built in gpu.built:
        fault = check(built)
        faults += bool(fault)
        seconds = time.perf_counter() - begin
        print(f"{case.name} sm_{arch}: {built} {fault and 'FAULT: ' + fault} {seconds:.1f}", flush=True)
    for kernel, ptx in _written(arch):
        if "max.f32" in ptx:
            faults += 1
            print(f"{case.name} sm_{arch}: {kernel} FAULT: a maximum that passes NaN over", flush=True)
    for kernel, shared in gpu.refused:
        print(f"{case.name} sm_{arch}: {kernel} wants {shared} bytes, there are {SHARED_LIMIT[arch]}", flush=True)
    assert not triton_launch.interpreted()
    return faults


def main() -> None:
    """Compiles; ends with 1 where something is beyond its bounds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="+", choices=CASES)
    parser.add_argument("--archs", nargs="+", type=int, default=[90], choices=SHARED_LIMIT)
    parser.add_argument("--ranks", nargs="+", type=int, default=[16, 64])
    parser.add_argument("--dtypes", nargs="+", default=["bf16"], choices=DTYPES)
    parser.add_argument("--flags", type=int, default=2, help="how many sets of the adapters' flags")
    parser.add_argument("--all", action="store_true", help="everything")
    asked = parser.parse_args()
    if asked.all:
        asked.archs, asked.ranks, asked.dtypes = ARCHS, RANKS, DTYPES
    faults = 0
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        for name, dtype, arch in itertools.product(asked.names, asked.dtypes, asked.archs):
            for case in CASES[name](DTYPES[dtype], asked):
                faults += compile_case(Case(f"{case.name} {dtype}", case.call), arch)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
