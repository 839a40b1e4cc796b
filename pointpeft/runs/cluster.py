"""Runs and predictions on a Ray cluster, with the same files as on one machine."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pointpeft.data import DataError

if TYPE_CHECKING:
    from pointpeft.runs.comparison.plan import PlannedRun
    from pointpeft.runs.predict import StreamResult

LOCAL, RUNNING = "local", "auto"


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """The module `ray`, connected for as long as the block runs.

    Args:
        address: "local" for a cluster of this machine alone, which ends with the block; "auto" for the one that this
            machine belongs to; or HOST:PORT, ray://HOST:PORT.

    Raises:
        ImportError: Ray is not installed.
        ValueError: There is no cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError("ray needs the package ray: pip install 'pointpeft[ray]'") from error
    options: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error", **options)
    except (ConnectionError, ValueError) as error:
        raise ValueError(
            f"ray must be {LOCAL}, {RUNNING} or the address of a cluster, got {address!r}: {error}"
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def complete_all(runs: "list[PlannedRun]", address: str, cpus: int) -> dict[str, str]:
    """Completes all runs, as many at a time as the cluster has resources for.

    A run has a process of its own, and a GPU where its device is one. Where a machine is lost it is taken up elsewhere,
    from its last epoch. All machines must see the run folders and the data under the same paths.

    Args:
        runs: Each has a name, under which its failure is reported.
        address: As in `connected`.
        cpus: Cores of each run.

    Returns:
        What went wrong, by name.
    """
    if cpus < 1:
        raise ValueError(f"ray_cpus must be at least 1, got {cpus}")
    failures = {}
    with connected(address) as ray:
        room = ray.cluster_resources()
        if room.get("CPU", 0) < cpus:
            raise ValueError(f"ray_cpus must be at most the cluster's {room.get('CPU', 0):.0f} cores, got {cpus}")
        # A worker serves one run: its peak memory is its own, and a crash takes nothing with it.
        task = ray.remote(max_calls=1, num_cpus=cpus)(_finetune_in)
        waiting = {task.options(num_gpus=_gpus(run.device, room)).remote(os.getcwd(), run): run.name for run in runs}
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            name = waiting.pop(done)
            try:
                error = ray.get(done)
            except ray.exceptions.RayError as lost:
                error = f"the process was lost: {lost}"
            if error:
                failures[name] = error
    return failures


def _gpus(device: str, room: dict[str, float]) -> int:
    return int(device.startswith("cuda") or (device == "auto" and room.get("GPU", 0) >= 1))


def _finetune_in(folder: str, run: "PlannedRun") -> str | None:
    """Completes a run, whose paths are relative to a folder; returns the error, or None."""
    from pointpeft.runs.comparison.complete import complete  # on the worker, so that this file needs no torch

    os.chdir(folder)
    return complete(run)


def predict_on_cluster(
    run: Path, paths: list[Path], output: Path, batch_size: int, device: str, address: str, cpus: int = 1
) -> "StreamResult":
    """As `predict_stream`, the shards dealt out to the machines; all must see them and `output` under the same paths.

    Ray Data deals them out: a pool of processes with a model each, which grows and shrinks with the cluster. A shard
    whose process or machine is lost is taken up elsewhere, behind the lines that it has left.

    Each shard, or block of files, leaves its lines in a part beside `output`; at the end the parts are put together in
    the order of one machine. The same call again goes on with every part where it stopped.

    Args:
        run: Run or adapter folder.
        paths: Files, folders, tar and HDF5 shards.
        output: The .jsonl file.
        batch_size: Clouds per step.
        device: Of the models.
        address: As in `connected`.
        cpus: Cores of each process.

    Returns:
        As `predict_stream`, and for how many processes there was room.
    """
    from pointpeft.runs.predict import join_parts, units

    if cpus < 1:
        raise ValueError(f"ray_cpus must be at least 1, got {cpus}")
    if output.exists():
        raise ValueError(f"{output} is there already; give another --output")
    folder = output.with_name(f"{output.name}.parts")
    work = [
        {"number": number, "files": list(map(str, files)), "part": str(folder / f"{number:06}.jsonl")}
        for number, files in enumerate(units(paths))
    ]
    started = time.perf_counter()
    with connected(address) as ray:
        room = ray.cluster_resources()
        gpus = _gpus(device, room)
        count = int(min(len(work), room.get("CPU", 0) // cpus, room.get("GPU", 0) if gpus else len(work)))
        if count < 1:
            raise ValueError(f"the cluster has no room for a process with {cpus} cores and {gpus} GPUs")
        data = _ray_data()
        found = (
            data.from_items(work, override_num_blocks=len(work))
            .map(
                _Predictor,
                fn_constructor_args=(os.getcwd(), run, device, batch_size),
                compute=data.ActorPoolStrategy(min_size=1, max_size=count),
                num_cpus=cpus,
                num_gpus=gpus,
            )
            .take_all()
        )
    found.sort(key=lambda row: row["number"])
    wrong = next((row["wrong"] for row in found if row["wrong"]), None)
    if wrong:
        raise DataError(wrong)
    result = join_parts([Path(row["part"]) for row in work], output, found, time.perf_counter() - started)
    return replace(result, processes=count)


def _ray_data() -> Any:
    """The module `ray.data`, with its own progress bars and log switched off."""
    try:
        import ray.data
    except ImportError as error:
        raise ImportError("ray needs Ray Data: pip install 'pointpeft[ray]'") from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return ray.data


class _Predictor:
    """A process of the cluster with a model of its own; paths are relative to a folder."""

    def __init__(self, folder: str, run: Path, device: str, batch_size: int) -> None:
        from pointpeft.runs.evaluate import load_run
        from pointpeft.training.loop import make_accelerator

        os.chdir(folder)
        self.adapted, self.batch_size = load_run(run, make_accelerator(device).device), batch_size

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The counts of one shard, or under "wrong" the error of its data or its output."""
        from pointpeft.runs.predict import COUNTS, predict_stream

        facts: dict[str, Any] = dict.fromkeys(COUNTS, 0)
        wrong = ""
        try:
            result = predict_stream(self.adapted, list(map(Path, row["files"])), Path(row["part"]), self.batch_size)
            facts = {name: getattr(result, name) for name in COUNTS}
        except (ValueError, OSError) as error:  # a row, not a failure: Ray would wrap it up in its own
            wrong = str(error)
        return {"number": row["number"], "wrong": wrong, **facts}
