"""The report of what kernels use: its reader, and that the one under version control knows every kernel."""

import re
from pathlib import Path

from benchmarks import ptxas

ROOT = Path(__file__).resolve().parent.parent.parent
SAID = """
Fatbin elf code:
================
arch = sm_80
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function _Z9my_kernelIfLi4EEvPT_:
  REG:128 STACK:24 SHARED:272 LOCAL:0 CONSTANT[0]:424 TEXTURE:0 SURFACE:0 SAMPLER:0
Fatbin elf code:
================
arch = sm_120
 Function _Z9my_kernelIfLi8EEvPT_:
  REG:64 STACK:0 SHARED:1040 LOCAL:0 CONSTANT[0]:424 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _Z12other_kernelv:
  REG:40 STACK:0 SHARED:0 LOCAL:8 CONSTANT[0]:424 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


def test_it_reads_what_cuobjdump_says():
    assert ptxas.parse(SAID) == [
        ptxas.Usage("_Z9my_kernelIfLi4EEvPT_", "sm_80", 128, 24, 0, 272),
        ptxas.Usage("_Z9my_kernelIfLi8EEvPT_", "sm_120", 64, 0, 0, 1040),
        ptxas.Usage("_Z12other_kernelv", "sm_120", 40, 0, 8, 0),
    ]


def test_the_table_has_a_row_a_kernel_and_names_its_stack():
    lines = ptxas.table(ptxas.parse(SAID)).splitlines()
    assert "| `my_kernel` (1) | 128, stack 24 | 64 | 1040 |" in lines
    assert "| `other_kernel` (1) | – | 40, stack 8 | 0 |" in lines


def test_the_report_knows_every_kernel():
    report = (ROOT / "benchmarks" / "results" / "ptxas.md").read_text()
    kernel = r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\("
    for source in (ROOT / "csrc").rglob("*.cu"):
        for name in re.findall(kernel, source.read_text()):
            assert f"| `{source.stem} {name}` (" in report, (
                f"run python -m benchmarks.ptxas: {source.name} has a new {name}"
            )
