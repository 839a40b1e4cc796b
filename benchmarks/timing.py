"""How long a call takes: on the CPU by the clock, on CUDA by events around replays of a CUDA graph.

Events around one call on an idle stream measure how fast Python launches: 25 to 100 us, where a kernel takes 5 to 50.
So the call is captured in a CUDA graph, whose replays need one launch each. Where a capture is refused, because the
call waits for the device or allocates outside of PyTorch, the row is timed eagerly and keeps the reason.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, cuda

REPLAYS = 20  # of a graph between two events
CALLS = 10  # captured in one graph, so that these share the gap between two replays
MAX_COPIES = 256  # of the inputs of a call that rotates through them
REPEATS = 5  # of such measurements, of which the median is taken
WARM_UPS = 3  # eager calls before a capture: they compile, tune and fill caches
L2_SHARE = 2  # times the L2 cache that rotated inputs fill


def median(values: Sequence[float]) -> float:
    """The middle value, the upper one of two."""
    return sorted(values)[len(values) // 2]


def clock_seconds(run: Callable[[], Any], repeats: int = 15) -> float:
    """Median time of a call on the CPU."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return median(times)


def event_seconds(run: Callable[[], Any], repeats: int = 15) -> float:
    """Median time between two events on the current stream, one before and one after a call."""
    times = []
    for _ in range(repeats):
        begin, end = (cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return median(times)


def seconds(run: Callable[[], Any], device: str, repeats: int = 15) -> float:
    """Median time of a call on a device, timed eagerly."""
    return event_seconds(run, repeats) if device == "cuda" else clock_seconds(run, repeats)


def copies_beyond_cache(inputs: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """The inputs and as many copies of them as fill the L2 cache twice: a call finds none of its inputs there."""
    cache = cuda.get_device_properties(inputs[0].device).L2_cache_size
    nbytes = max(1, sum(tensor.nbytes for tensor in inputs))
    count = min(MAX_COPIES, max(1, -(-L2_SHARE * cache // nbytes)))
    copies = [tuple(t.detach().clone().requires_grad_(t.requires_grad) for t in inputs) for _ in range(count - 1)]
    return [tuple(inputs), *copies]


def refusal(error: BaseException) -> str:
    """The first line of the error that came first, as the reason that a row keeps."""
    while error.__context__ is not None:
        error = error.__context__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def waiting_reason(run: Callable[[], Any]) -> str:
    """Why a call cannot be captured, because it waits for the device; empty where it does not.

    This is found out before the capture: a failed one can leave generators and allocator in the state of a capture.
    """
    before = cuda.get_sync_debug_mode()
    cuda.set_sync_debug_mode("error")
    try:
        run()
    except RuntimeError as error:
        return refusal(error)
    finally:
        cuda.set_sync_debug_mode(before)
    return ""


def capture(calls: Sequence[Callable[[], Any]]) -> tuple[Any, str]:
    """The calls in one CUDA graph, or None and why that was refused.

    They are captured on the current stream where it is not the default one: the backward of a forward pass that ran on
    it is captured with them.
    """
    default = cuda.current_stream() == cuda.default_stream()
    stream = cuda.Stream() if default else cuda.current_stream()
    before = cuda.current_stream()
    stream.wait_stream(before)
    with cuda.stream(stream):
        for _ in range(WARM_UPS):
            calls[0]()
        cuda.synchronize()
        reason = waiting_reason(calls[0])
        if reason:
            return None, reason
        graph = cuda.CUDAGraph()
        results = []  # alive to the end of the capture, so that each call writes memory of its own
        try:
            with cuda.graph(graph, stream=stream):
                for call in calls:
                    results.append(call())
        except RuntimeError as error:
            cuda.set_stream(stream)  # a failed capture may leave another
            return None, refusal(error)
    before.wait_stream(stream)
    return graph, ""


def graph_seconds(graph: Any, calls: int, replays: int = REPLAYS, repeats: int = REPEATS) -> float:
    """Median time of one of the calls that were captured, over replays between two events."""
    graph.replay()
    cuda.synchronize()

    def replay() -> None:
        for _ in range(replays):
            graph.replay()

    return event_seconds(replay, repeats) / (replays * calls)


def gpu_facts(run: Callable[..., Any], rotate: Sequence[Tensor] = (), slow: bool = False) -> dict[str, Any]:
    """Times a call on CUDA eagerly and as a graph.

    Args:
        run: The call; it gets the tensors of `rotate`.
        rotate: Inputs of a call that memory bounds; copies beyond the L2 cache take turns.
        slow: The call takes so long that few repetitions must do.

    Returns:
        `eager_seconds`; `graph_seconds`, or `graph_refused` with the reason; `calls`, how many a graph holds;
        `rotated_bytes`, the size of all copies.
    """
    repeats = 3 if slow else 15
    facts: dict[str, Any] = {"eager_seconds": event_seconds(lambda: run(*rotate), repeats)}
    inputs = copies_beyond_cache(rotate) if rotate else [()] * (1 if slow else CALLS)
    if rotate:
        facts["rotated_bytes"] = sum(t.nbytes for tensors in inputs for t in tensors)
    graph, reason = capture([lambda tensors=tensors: run(*tensors) for tensors in inputs])
    if graph is None:
        return facts | {"graph_refused": reason}
    replays, rounds = (3, 3) if slow else (REPLAYS, REPEATS)
    facts["graph_seconds"] = graph_seconds(graph, len(inputs), replays, rounds)
    facts["calls"] = len(inputs)
    return facts


def measure_limits(device: str) -> dict[str, float]:
    """What a device can do: bytes copied (read and written) and FLOPs of a matrix product, per second.

    On CUDA products in TF32 and bfloat16 are measured as well: float32 alone says little of tensor cores.
    """
    source = torch.rand(2**25, device=device)  # 128 MiB: past every cache
    target = torch.empty_like(source)
    size = 2048 if device == "cpu" else 8192

    def rate(amount: float, run: Callable[[], Any]) -> float:
        run(), run()
        return amount / seconds(run, device) / 1e9

    limits = {"copy_gb_per_s": rate(2 * source.nbytes, lambda: target.copy_(source))}
    a, b = (torch.rand(size, size, device=device) for _ in range(2))
    flops = 2.0 * size**3
    limits["matmul_gflop_per_s"] = rate(flops, lambda: a @ b)
    if device == "cuda":
        before = torch.backends.cuda.matmul.fp32_precision
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        limits["matmul_tf32_gflop_per_s"] = rate(flops, lambda: a @ b)
        torch.backends.cuda.matmul.fp32_precision = before
        a, b = a.bfloat16(), b.bfloat16()
        limits["matmul_bf16_gflop_per_s"] = rate(flops, lambda: a @ b)
    return limits
