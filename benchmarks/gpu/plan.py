"""The steps in order of worth, on a GPU and in a rehearsal on the CPU."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu import files, outcomes
from benchmarks.gpu.runner import ROOT, Step, python
from benchmarks.gpu.sanitize import TOOLS

FIRST_CONFIG = {"POINTPEFT_AUTOTUNE": "first"}  # nothing is timed where only right and wrong are asked
BENCHES = (
    "furthest_point_sample",
    "knn",
    "sample_and_group",
    "aggregate_neighbors",
    "gather",
    "ball_query",
    "chamfer_distance",
    "interpolate",
    "adapter",
    "patch_embed",
    "scale_shift",
    "layer_norm",
    "frozen_attention",
    "attention",
    "frozen_linear",
    "frozen_mlp",
)
"""Benchmarks of operations; those of models are a step of their own."""


def plan(rehearse: bool, output: str = "{output}") -> list[Step]:
    """All steps.

    Args:
        rehearse: On the CPU, with tiny sizes, everything but what needs a GPU.
        output: Stands for the file that a step writes.
    """
    device = "cpu" if rehearse else "cuda"
    common = ["--device", device, "--output", output] + ["--tiny"] * rehearse
    cases, workers = ("12", "1") if rehearse else ("2000", "8")
    agreement = ["--cases", cases, "--seconds", "{most}", "--workers", workers, "--output", output]
    fuzzed = FIRST_CONFIG | {"POINTPEFT_FUZZ_DEVICE": device}
    return [
        Step("build", python("benchmarks.gpu.build", "--output", output, *["--rehearse"] * rehearse), 150, needed=True),
        Step("machine", python("benchmarks.gpu.machine", *common, "--require-compiled"), 40, needed=True),
        tests(rehearse, output),
        Step("agreement", python("tests.hardening.fuzz.on_device", *agreement), 45, environment=fuzzed),
        *sanitizers(rehearse, output),
        rows(rehearse, output),
        Step("kernels", python("benchmarks.gpu.kernels", *common, "--seconds", "{seconds}"), 45),
        Step("models", python("benchmarks.gpu.models", *common, "--seconds", "{seconds}"), 150),
        Step("profile", python("benchmarks.gpu.profiling", *common), 20),
    ]


def tests(rehearse: bool, output: str) -> Step:
    """The tests of the operations on the device."""
    command = [*python("pytest"), "-q", "-p", "no:cacheprovider", "-p", "benchmarks.gpu.outcomes"]
    if rehearse:
        command += ["tests/ops/points/test_gather.py", "-k", "cpu and (strides or indices_name)"]
    else:
        command += ["tests/ops", "-m", "gpu"]
        command += ["-n", "8"] if importlib.util.find_spec("xdist") else []
    environment = FIRST_CONFIG | {"POINTPEFT_OUTCOMES": output}
    return Step("tests", tuple(command), 110, suffix=".jsonl", summary=outcomes.summary, environment=environment)


def sanitizers(rehearse: bool, output: str) -> list[Step]:
    """compute-sanitizer over every path; in a rehearsal the paths without it."""
    if rehearse:
        command = python("benchmarks.gpu.paths", "--device", "cpu", "--small", "--output", output)
        return [Step("paths", command, 30, environment=FIRST_CONFIG)]
    limits = dict(zip(TOOLS, (60, 60, 35), strict=True))
    return [
        Step(
            tool,
            python("benchmarks.gpu.sanitize", tool, "--output", output, "--seconds", "{seconds}"),
            limits[tool],
            environment=FIRST_CONFIG,
        )
        for tool in TOOLS
    ]


def rows(rehearse: bool, output: str) -> Step:
    """The benchmarks of the operations, beside the peers that are installed."""
    if importlib.util.find_spec("pytest_benchmark") is None:
        why = "import sys; print('pytest-benchmark is not installed'); sys.exit(77)"
        return Step("operations", (sys.executable, "-c", why), 1)
    command = [*python("pytest"), "-q", "-p", "no:cacheprovider", "--benchmark-only", "--benchmark-disable-gc"]
    command += ["--device", "cpu" if rehearse else "cuda", "--rows", output]
    if rehearse:
        command += [
            "--benchmark-max-time=0.001",
            "-k",
            "pointpeft and forward",
            "benchmarks/frozen/bench_scale_shift.py",
        ]
    else:
        command += [str(path) for name in BENCHES for path in sorted((ROOT / "benchmarks").rglob(f"bench_{name}.py"))]
    return Step("operations", tuple(command), 90, suffix=".jsonl", summary=timed_rows)


def timed_rows(path: Path) -> Any:
    """The rows, each once where a run was begun anew."""
    return files.read(path)
