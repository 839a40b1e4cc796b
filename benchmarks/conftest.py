"""The harness: a benchmark hands over one contender and its check; a wrong result is never timed.

Every row carries the bytes and FLOPs it must move at least, and every file of results the machine's own limits (a copy
and a matrix product, timed in the same run), so that `python -m benchmarks.report` can say how far a row is from them.
"""

import os
import platform
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pointpeft.ops.core import library as _library

torch.set_num_threads(min(2, os.cpu_count() or 1))

SLOW = 0.1  # seconds of a first run, from which on a row is timed three times only
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def _seconds(run: Callable[[], Any], device: str, repeats: int = 15) -> float:
    """Median time of one call; on CUDA between two events on the current stream."""
    times = []
    for _ in range(repeats):
        if device == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        else:
            begin_time = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin_time)
    return sorted(times)[len(times) // 2]


def _measure_limits(device: str) -> dict[str, float]:
    source = torch.rand(2**25, device=device)  # 128 MiB: past every cache
    target = torch.empty_like(source)
    a, b = (torch.rand(2048, 2048, device=device) for _ in range(2))
    copy, product = lambda: target.copy_(source), lambda: a @ b
    copy(), product()
    return {
        "copy_gb_per_s": 2 * source.nbytes / _seconds(copy, device) / 1e9,
        "matmul_gflop_per_s": 2 * 2048**3 / _seconds(product, device) / 1e9,
    }


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


@pytest.fixture(scope="session")
def limits() -> dict[str, dict[str, float]]:
    """What this machine can do, by device: bytes copied (read and written) and float32 FLOPs, per second."""
    return {device: _measure_limits(device) for device in DEVICES}


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
    part = _library.PARTS[device]
    reason = f"{part.reason}; {part.remedy}" if not part.live else "POINTPEFT_BACKEND asks for the reference"
    pytest.fail(f"{request.node.name} would run on plain PyTorch: {reason}")


@pytest.fixture
def compare(benchmark: Any, request: pytest.FixtureRequest, limits: dict[str, dict[str, float]]) -> Callable[..., None]:
    """`compare(group, run, check, device="cpu", bytes=…, flops=…)`: checks `run()`, then times a row of `group`.

    `rounds` limits a row to so many runs, a slow first run to three; the rest run for `--benchmark-max-time`, but
    five times at least.
    """

    def row(
        group: str,
        run: Callable[[], Any],
        check: Callable[[Any], bool],
        device: str = "cpu",
        rounds: int | None = None,
        **facts: Any,
    ) -> None:
        require_compiled(request, device)
        begin = time.perf_counter()
        result = run()
        if rounds is None and time.perf_counter() - begin > SLOW:
            rounds = 3
        if not check(result):
            pytest.fail(f"{request.node.name} gives a wrong result: not timed")
        benchmark.group = group if device == "cpu" else f"{group} [{device}]"
        benchmark.extra_info.update(facts, device=device, limits=limits[device])
        if device == "cuda":
            benchmark.extra_info["cuda_event_seconds"] = _seconds(run, device, repeats=100)

            def timed() -> None:
                run()
                torch.cuda.synchronize()

            benchmark(timed)
        elif rounds:
            benchmark.pedantic(run, rounds=rounds)
        else:
            benchmark(run)

    return row


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
