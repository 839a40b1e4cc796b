"""Times DAPT's training and inference at the published size, and asks for its memory and its waits.

python -m benchmarks.gpu.models --device cuda --output models.json --seconds 180
"""

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import cuda

from benchmarks import timing
from benchmarks.gpu import dapt, files

BATCH = 32
STEPS = 10  # between two events: the host runs ahead of the device, as it does in training
MAX_BATCH = 1 << 14
LIMIT = {"fp32": (1e-3, 1e-2), "tf32": (2e-2, 0.2), "bf16": (5e-2, 0.3)}
"""Relative distance from the CPU's float32: of logits and of gradients, in which maxima and ReLUs decide otherwise."""

WAYS = ("eager", "graph", "compile + graphs", "compile")
WORKS = ("training", "inference")
NUM_PLAIN = 2 * len(dapt.PRECISIONS) * len(WORKS)  # rows of the first two ways, which compile nothing


def seconds_of(step: Callable[[], Any], device: str) -> float:
    """Median time of a step among several in a row."""
    if device == "cpu":
        return timing.clock_seconds(step, repeats=3)

    def several() -> None:
        for _ in range(STEPS):
            step()

    return timing.event_seconds(several, repeats=5) / STEPS


def count_waits(step: Callable[[], Any]) -> list[str]:
    """What in a step waits for the device, as torch warns of it."""
    before = cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            cuda.set_sync_debug_mode(before)
    return [f"{w.filename}:{w.lineno}: {w.message}" for w in caught if "synchroniz" in str(w.message)]


def largest_batch(run_at: Callable[[int], Any], until: float, most: int = MAX_BATCH) -> tuple[int, bool]:
    """The largest batch that fits among powers of two and the halves between; whether a larger one was refused.

    Args:
        run_at: Runs one step with a batch, and raises torch.OutOfMemoryError where it does not fit.
        until: Time by the monotonic clock, after which no further batch is tried.
        most: No larger one is tried.
    """
    fits, refused, size = 0, False, 2  # the head's normalisation has no variance over one cloud
    while size <= most and time.monotonic() < until:
        try:
            run_at(size)
        except torch.OutOfMemoryError:
            refused = True
            break
        fits, size = size, 2 * size
    step, finest = fits // 2, max(1, fits // 16)
    while refused and step >= finest and time.monotonic() < until:
        try:
            run_at(fits + step)
            fits += step
        except torch.OutOfMemoryError:
            pass  # a smaller step may still fit
        step //= 2
    return fits, refused


def memory_of(step: Callable[[], Any]) -> dict[str, int]:
    """Bytes at the peak of a step: allocated, weights included, and reserved."""
    step()
    cuda.synchronize()
    cuda.reset_peak_memory_stats()
    step()
    cuda.synchronize()
    return {"peak_bytes": cuda.max_memory_allocated(), "reserved_bytes": cuda.max_memory_reserved()}


def time_way(work: str, way: str, model: dapt.Dapt, batch: int, tiny: bool) -> dict[str, Any]:
    """Seconds of a step in one way, its memory where it runs eagerly, and how it was taken."""
    device = model.device
    if way.startswith("compile"):
        forward = dapt.compiled(model.model, "graphs" in way, tiny)
        step = model.call(work, batch, forward)
        begin = time.perf_counter()
        step(), step(), step()
        return {"compile_seconds": round(time.perf_counter() - begin, 1), "seconds": seconds_of(step, device)}
    step = model.call(work, batch)
    for _ in range(3):
        step()
    if way == "eager":
        facts: dict[str, Any] = {"seconds": seconds_of(step, device)}
        return facts | (memory_of(step) | {"waits": count_waits(step)} if device == "cuda" else {})
    if device == "cpu":
        return {"refused": "CUDA graphs need CUDA"}
    graph, reason = timing.capture([step])
    return {"refused": reason} if graph is None else {"seconds": timing.graph_seconds(graph, 1, 10)}


def order(tiny: bool) -> list[tuple[str, str, str]]:
    """Ways, precisions and kinds of work in order of worth: what is compiled comes last, as it takes minutes."""
    plain = [(way, precision, work) for way in WAYS[:2] for precision in dapt.PRECISIONS for work in WORKS]
    if tiny:
        return [*plain, ("compile + graphs", "fp32", "training"), ("compile", "fp32", "inference")]
    return plain + [(way, precision, work) for precision in dapt.PRECISIONS for way in WAYS[2:] for work in WORKS]


def rows(device: str, tiny: bool, until: float) -> Any:
    """Every way of every precision, as rows that are given as they come."""
    batch = 2 if tiny else BATCH
    for way, precision, work in order(tiny):
        row: dict[str, Any] = {"work": work, "precision": precision, "way": way, "batch": batch}
        if time.monotonic() > until:
            yield row | {"left_out": "no time was left"}
            continue
        dapt.set_precision(precision)
        try:
            row |= time_way(work, way, dapt.Dapt(device, precision, tiny), batch, tiny)
        except Exception as error:
            row["failed"] = timing.refusal(error)
        if "seconds" in row:
            row["clouds_per_s"] = round(batch / row["seconds"], 1)
        yield row
        if device == "cuda":
            cuda.empty_cache()


def agreement(device: str, tiny: bool) -> dict[str, Any]:
    """How far logits and gradients on the device are from those of the CPU in float32."""
    dapt.set_precision("fp32")
    reference = dapt.Dapt("cpu", "fp32", tiny)
    expected = reference.answers()
    found: dict[str, Any] = {}
    for precision in dapt.PRECISIONS:
        dapt.set_precision(precision)
        model = dapt.Dapt(device, precision, tiny)
        model.model.load_state_dict(reference.model.state_dict())
        distances = dapt.distance(model.answers(), expected)
        fits = all(d <= limit for d, limit in zip(distances, LIMIT[precision], strict=True))
        found[precision] = {"logits": distances[0], "gradients": distances[1], "fits": fits}
    return found


def batches(device: str, tiny: bool, until: float) -> dict[str, Any]:
    """The largest batch of a training step, by precision."""
    found = {}
    for precision in ("bf16", "fp32"):
        dapt.set_precision(precision)
        model = dapt.Dapt(device, precision, tiny)

        def run_at(size: int, model: dapt.Dapt = model) -> None:
            if device == "cuda":
                cuda.empty_cache()
            model.training_step(size)()
            if device == "cuda":
                cuda.synchronize()

        try:
            size, refused = largest_batch(run_at, until, 2 if tiny else MAX_BATCH)
            found[precision] = {"batch": size, "larger_refused": refused}
        except Exception as error:
            found[precision] = {"failed": timing.refusal(error)}
    return found


def main() -> None:
    """The command; ends with 1 where a way failed, a result is wrong or a step waits for the device."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    begin = time.monotonic()
    result: dict[str, Any] = {"stand_ins": dapt.STAND_INS, "rows": []}
    result["agreement"] = agreement(given.device, given.tiny)
    files.write(given.output, result)
    for row in rows(given.device, given.tiny, begin + 0.6 * given.seconds):  # a compilation may take the rest
        result["rows"].append(row)
        files.write(given.output, result)
        if len(result["rows"]) == NUM_PLAIN:  # worth more than what is compiled
            result["largest_batch"] = batches(given.device, given.tiny, begin + 0.8 * given.seconds)
            files.write(given.output, result)
    faults = [f"{r['work']} {r['precision']} {r['way']}: {r['failed']}" for r in result["rows"] if "failed" in r]
    faults += [f"batches in {p}: {f['failed']}" for p, f in result["largest_batch"].items() if "failed" in f]
    faults += [f"{name} is off: {facts}" for name, facts in result["agreement"].items() if not facts["fits"]]
    faults += [f"a step of {r['work']} waits: {r['waits']}" for r in result["rows"] if r.get("waits")]
    raise SystemExit("\n".join(faults) or 0)


if __name__ == "__main__":
    main()
