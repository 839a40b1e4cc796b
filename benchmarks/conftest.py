"""The harness: a benchmark hands over one contender and its check; a wrong result is never timed.

Every row carries the bytes and FLOPs it must move at least, and every file of results the machine's own limits (a copy
and a matrix product, timed in the same run), so that `python -m benchmarks.report` can say how far a row is from them.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import timing
from pointpeft.ops.core import library as _library

torch.set_num_threads(min(2, os.cpu_count() or 1))

SLOW = 0.1  # seconds of a first run, from which on a row is timed three times only
SLOW_CAPTURED = 0.01  # seconds of a run on CUDA, from which on a graph holds one call and not ten
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the rows of the other device where `--device` names one; rows without a device are of the CPU."""
    device = config.getoption("--device")
    if device is None:
        return
    of_device = [
        getattr(getattr(item, "callspec", None), "params", {}).get("device", "cpu") == device for item in items
    ]
    config.hook.pytest_deselected(items=[item for item, fits in zip(items, of_device, strict=True) if not fits])
    items[:] = [item for item, fits in zip(items, of_device, strict=True) if fits]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the device, and of the rows that time whole models."""
    group = parser.getgroup("pointpeft")
    group.addoption("--device", choices=("cpu", "cuda"), help="time the rows of one device only")
    group.addoption("--rows", type=Path, help="append each row to this file as it comes, a line of JSON each")
    group.addoption(
        "--every-method", action="store_true", help="time training with all methods, not DAPT and full only"
    )
    group.addoption("--batches", default="16", help="batch sizes of training and inference, separated by commas")
    group.addoption("--dtypes", default="fp32,bf16", help="fp32, bf16 or both, separated by a comma")
    group.addoption(
        "--contenders", default="pointpeft,reference,merged", help="what is timed: of pointpeft, reference, merged"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """A row takes 0.3 s where `--benchmark-max-time` asks for nothing else, so that all rows end within minutes."""
    if not any(argument.startswith("--benchmark-max-time") for argument in config.invocation_params.args):
        config.option.benchmark_max_time = type(config.option.benchmark_max_time)("0.3")


def devices_to_time(config: pytest.Config) -> list[str]:
    """The one of `--device`, else all there are."""
    device = config.getoption("--device")
    return [device] if device else DEVICES


@pytest.fixture(scope="session")
def limits(request: pytest.FixtureRequest) -> dict[str, dict[str, float]]:
    """What this machine can do, by device."""
    return {device: timing.measure_limits(device) for device in devices_to_time(request.config)}


@pytest.fixture(autouse=True)
def _bfloat16_in_hardware(request: pytest.FixtureRequest) -> None:
    """Leaves out bfloat16 on a processor without instructions for it, where a row takes minutes and says nothing."""
    row = getattr(request.node, "callspec", None)
    if (
        row is not None
        and row.params.get("device") == "cpu"
        and row.params.get("dtype") in ("bf16", torch.bfloat16)
        and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    ):
        pytest.skip("this processor computes bfloat16 in software")


def require_compiled(request: pytest.FixtureRequest, device: str) -> None:
    """Fails a row of ours that plain PyTorch would answer: it would time the reference against itself."""
    row = getattr(request.node, "callspec", None)
    if row is None or "pointpeft" not in row.params.values() or _library.backend(device) == "compiled":
        return
    part = _library.LIBRARIES[device]
    reason = f"{part.reason}; {part.remedy}" if not part.live else "POINTPEFT_BACKEND asks for the reference"
    pytest.fail(f"{request.node.name} would run on plain PyTorch: {reason}")


@pytest.fixture(autouse=True)
def _own_stream() -> Iterator[None]:
    """Runs a row on a stream of its own on CUDA: what autograd begins on the default stream cannot be captured."""
    if not torch.cuda.is_available():
        yield
        return
    before = torch.cuda.current_stream()
    stream = torch.cuda.Stream()
    stream.wait_stream(before)
    with torch.cuda.stream(stream):
        yield
    before.wait_stream(stream)


def time_row(
    benchmark: Any,
    request: pytest.FixtureRequest,
    limits: dict[str, dict[str, float]],
    group: str,
    run: Callable[..., Any],
    check: Callable[[Any], bool],
    device: str = "cpu",
    rounds: int | None = None,
    rotate: Sequence[Tensor] = (),
    **facts: Any,
) -> None:
    """Checks `run(*rotate)`, then times it as a row of `group`.

    Args:
        benchmark: pytest-benchmark's fixture.
        request: Of the row.
        limits: Of each device.
        group: What the row is compared with.
        run: The contender.
        check: Whether its result is right.
        device: Where it runs.
        rounds: How often, a slow first run three times; None: for `--benchmark-max-time`, but five times at least.
        rotate: Inputs that `run` takes. On CUDA copies of them beyond the L2 cache take turns, as a call that memory
            bounds would otherwise read its inputs from the cache; for others, or without, the same ones are used.
        facts: What the row keeps beside its times, such as `bytes` and `flops`.
    """
    require_compiled(request, device)
    begin = time.perf_counter()
    result = run(*rotate)
    if device == "cuda":
        torch.cuda.synchronize()
    if rounds is None and time.perf_counter() - begin > SLOW:
        rounds = 3
    if not check(result):
        pytest.fail(f"{request.node.name} gives a wrong result: not timed")
    del result
    benchmark.group = group if device == "cpu" else f"{group} [{device}]"
    benchmark.extra_info.update(facts, device=device, limits=limits[device])
    if device == "cuda":
        # The first call may have compiled: the second one says whether the row is slow.
        slow = timing.event_seconds(lambda: run(*rotate), repeats=1) > SLOW_CAPTURED
        benchmark.extra_info.update(timing.gpu_facts(run, rotate, slow))

        def timed() -> None:
            run(*rotate)
            torch.cuda.synchronize()

        benchmark.pedantic(timed, rounds=3)
    elif rounds:
        benchmark.pedantic(run, args=tuple(rotate), rounds=rounds)
    else:
        benchmark(run, *rotate)
    path = request.config.getoption("--rows")
    if path is not None:
        append_row(path, benchmark, request)


def append_row(path: Path, benchmark: Any, request: pytest.FixtureRequest) -> None:
    """Adds a row to a file in the form of pytest-benchmark's JSON: what was timed stays where a run is cut short."""
    params = getattr(getattr(request.node, "callspec", None), "params", {})
    row = {
        "group": benchmark.group,
        "name": request.node.name,
        "params": {name: value if isinstance(value, (int, float)) else str(value) for name, value in params.items()},
        "stats": {"median": benchmark.stats.stats.median},
        "extra_info": benchmark.extra_info,
    }
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


@pytest.fixture
def compare(benchmark: Any, request: pytest.FixtureRequest, limits: dict[str, dict[str, float]]) -> Callable[..., None]:
    """`compare(group, run, check, device="cpu", rounds=…, rotate=…, bytes=…, flops=…)`: `time_row` of this row."""
    return partial(time_row, benchmark, request, limits)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """The facts a reader needs to judge the numbers; nothing that names the machine."""
    machine_info.pop("node", None)
    machine_info.update(
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        python=platform.python_version(),
    )


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Leaves the single times out: their statistics stay, and the file can be kept under version control."""
    for row in output_json["benchmarks"]:
        row["stats"].pop("data", None)
