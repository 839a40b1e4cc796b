"""A GPU that is not there, for Triton: kernels are compiled for it and their resources read, nothing runs.

It replaces Triton's driver, so that Triton's own autotuner and compiler decide what is compiled, what
happens where a configuration does not compile or does not fit, and what is launched. A process that uses it must not
have imported Triton as an interpreter, and must have a `TRITON_CACHE_DIR` of its own: what the autotuner "measures"
here would else be kept for a real GPU.
"""

import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import ptxas

SHARED_LIMIT = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
"""Bytes of shared memory a block may use, by architecture ("CUDA C++ programming guide", compute capabilities)."""


class Built(NamedTuple):
    """What a compiled kernel takes: registers a thread, stack bytes a thread, shared bytes a block."""

    kernel: str
    arch: int
    warps: int
    registers: int
    stack: int
    shared: int


class Launch(NamedTuple):
    """A launch that would have been made: kernel, number of programs, current device."""

    kernel: str
    grid: tuple[int, int, int]
    device: int


class StubGpu:
    """What Triton asks of a driver."""

    def __init__(self, arch: int, inspect: bool = True):
        self.arch = arch
        self.inspect = inspect
        self.device = 0
        self.built: list[Built] = []
        self.launches: list[Launch] = []
        self.refused: list[tuple[str, int]] = []
        """Kernels that did not fit, with the bytes of shared memory they wanted."""
        self.utils = self

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.arch, 32)

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_LIMIT[self.arch]}

    def get_benchmarker(self) -> Any:
        return lambda call, quantiles: call() or [1.0] * len(quantiles)

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        if metadata.shared > SHARED_LIMIT[self.arch]:
            self.refused.append((metadata.name, metadata.shared))

        def launch(x: int, y: int, z: int, *rest: Any) -> None:
            assert 0 < x < 2**31
            assert 0 < y < 2**16
            assert 0 < z < 2**16
            self.launches.append(Launch(metadata.name, (x, y, z), self.device))

        self.warps = metadata.num_warps
        return launch

    def load_binary(self, name: str, cubin: bytes, shared: int, device: int) -> tuple[Any, ...]:
        usage = self._usage(cubin) if self.inspect else None
        if usage is not None:
            self.built.append(Built(name, self.arch, self.warps, usage.registers, usage.stack + usage.local, shared))
        return "module", "function", 0, 0, 1024

    def unload_module(self, module: Any) -> None:
        pass

    @staticmethod
    def _usage(cubin: bytes) -> ptxas.Usage:
        with tempfile.NamedTemporaryFile(suffix=".cubin", delete=False) as file:
            file.write(cubin)
        try:
            (usage,) = ptxas.parse(ptxas.cuobjdump(Path(file.name)))
        finally:
            os.unlink(file.name)
        return usage
