"""The operations of compiled kernels, called as on a pretended device."""

import contextlib
import ctypes
import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from tests.csrc.emulation import build

import pointpeft.ops  # noqa: F401  isort: skip  (declares the operations)


@dataclasses.dataclass(frozen=True)
class Device:
    """What the emulator pretends to be. The host code remembers what a device offers by its index."""

    index: int
    architecture: int
    processors: int
    max_cluster: int  # blocks; 1 where there are no clusters

    def __str__(self) -> str:
        return f"sm_{self.architecture}, {self.processors} processors, clusters of {self.max_cluster}"


DEVICES = (
    Device(0, 75, 40, 1),
    Device(1, 80, 108, 1),
    Device(2, 90, 132, 16),
    Device(3, 90, 132, 8),
    Device(4, 90, 3, 16),  # a slice of a device: fewer processors than clusters have blocks
    Device(5, 100, 148, 16),
    Device(6, 120, 170, 8),
)
SM75, SM80, SM90, SM90_CLUSTERS_OF_8, SM90_SLICE, SM100, SM120 = DEVICES
WAYS = ("held", "buckets", "memory")  # of furthest_point_sample, in the order of Plan::Way


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan of a sampling that a test puts in the place of the project's."""

    way: str
    threads: int
    points: int
    blocks: int


class Choices(ctypes.Structure):
    """`Choices` of emulation.h."""

    _fields_ = (
        ("way", ctypes.c_int),
        ("threads", ctypes.c_int),
        ("points", ctypes.c_int),
        ("blocks", ctypes.c_int),
        ("max_blocks", ctypes.c_int64),
        ("product_entries", ctypes.c_int64),
        ("max_steps", ctypes.c_int64),
    )


class Finding(Exception):
    """What the emulator reports of a kernel or its host code."""


class Kernels:
    """The kernels as compiled for one architecture."""

    def __init__(
        self,
        architecture: int,
        sources: Mapping[str, str] | None = None,
        only: list[str] | None = None,
        schemas: tuple[str, ...] | None = None,
    ):
        path, name = build.build(architecture, sources, only)
        self._definitions = torch.library.Library(name, "FRAGMENT")
        for schema in schemas or declared_schemas():
            self._definitions.define(schema)
        torch.ops.load_library(path)
        self._ops = getattr(torch.ops, name)
        self._c = ctypes.CDLL(str(path))
        self._c.emulation_begin.argtypes = (ctypes.c_uint64, *[ctypes.c_int] * 4)
        self._c.emulation_end.restype = self._c.emulation_launches.restype = ctypes.c_char_p

    def call(
        self,
        operation: str,
        *arguments: Any,
        device: Device,
        seed: int = 0,
        plan: Plan | None = None,
        max_blocks: int = 1 << 20,
        product_entries: int = 1 << 24,
        max_steps: int = 300_000_000,
    ) -> Any:
        """Runs an operation on CPU tensors as if they were on `device`; `seed` draws the order of its threads."""
        way = (WAYS.index(plan.way), plan.threads, plan.points, plan.blocks) if plan else (-1, 0, 0, 1)
        self._c.emulation_choose(ctypes.byref(Choices(*way, max_blocks, product_entries, max_steps)))
        self._c.emulation_begin(seed, device.index, device.architecture, device.processors, device.max_cluster)
        with filled_with_nan():
            try:
                result = getattr(self._ops, operation)(*arguments)
            except RuntimeError:
                if finding := self._c.emulation_end().decode():
                    raise Finding(finding) from None
                raise
        if finding := self._c.emulation_end().decode():
            raise Finding(finding)
        return result

    def launches(self) -> dict[str, int]:
        """How often each instance of a kernel ran, by a name such as gather_kernel<uint4>."""
        lines = self._c.emulation_launches().decode().splitlines()
        return {short_name(name): int(count) for name, count in (line.split("\t") for line in lines)}


def short_name(name: str) -> str:
    """The kernel of __PRETTY_FUNCTION__, with its template arguments alone."""
    kernel = re.search(r"(\w+)\(", name)
    arguments = re.search(r"\[with (.*)\]$", name)
    values = [part.split(" = ")[1] for part in arguments[1].split("; ") if " = " in part] if arguments else []
    values = [value for value in values if not re.search(r"^(long int|short unsigned int)$", value)]
    return f"{kernel[1] if kernel else name}<{', '.join(values)}>"


@functools.cache
def declared_schemas() -> tuple[str, ...]:
    """Of all operations that the project declares."""
    declared = [s for s in torch._C._jit_get_all_schemas() if s.name.startswith("pointpeft::")]
    return tuple(str(schema).removeprefix("pointpeft::") for schema in declared)


@contextlib.contextmanager
def filled_with_nan() -> Iterator[None]:
    """New tensors hold NaN, or the largest integer, so that what is never written, or read too early, differs."""
    was = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was)


BUILT: dict[int, Kernels] = {}


def kernels(architecture: int) -> Kernels:
    """The project's kernels, compiled once."""
    if architecture not in BUILT:
        BUILT[architecture] = Kernels(architecture)
    return BUILT[architecture]
