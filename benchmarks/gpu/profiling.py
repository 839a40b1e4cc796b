"""Profiles training steps of DAPT: which kernels take the time, and how many there are.

python -m benchmarks.gpu.profiling --device cuda --output profile.json
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu import dapt, files

STEPS, SHOWN = 3, 40


def profiled(device: str, precision: str, tiny: bool) -> dict[str, Any]:
    """Calls and microseconds a step: of the kernels, and of what the host does, those that take most."""
    dapt.set_precision(precision)
    step = dapt.Dapt(device, precision, tiny).training_step(2 if tiny else 32)
    for _ in range(3):
        step()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with profile(activities=activities) as recorded:
        for _ in range(STEPS):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
    events = recorded.key_averages()

    def table(time: str, chosen: list[Any]) -> list[dict[str, Any]]:
        ordered = sorted(chosen, key=lambda event: -getattr(event, time))[:SHOWN]
        return [
            {"name": e.key[:160], "calls": e.count / STEPS, "us": round(getattr(e, time) / STEPS, 1)} for e in ordered
        ]

    kernels = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
    return {
        "precision": precision,
        "kernels_a_step": sum(e.count for e in kernels) / STEPS,
        "kernels_us": round(sum(e.self_device_time_total for e in kernels) / STEPS, 1),
        "kernels": table("self_device_time_total", kernels),
        "host": table("self_cpu_time_total", [e for e in events if e not in kernels]),
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    result = []
    for precision in ("bf16", "fp32")[: 1 if given.tiny else 2]:
        result.append(profiled(given.device, precision, given.tiny))
        files.write(given.output, result)


if __name__ == "__main__":
    main()
