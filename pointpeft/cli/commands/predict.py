"""`pointpeft predict`: classify files, or their points, with the adapter of a run."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from pointpeft.runs.predict import StreamResult


@dataclass(frozen=True)
class Predict:
    """Classify clouds or meshes, or their points, with the adapter of a run.

    Prints one line per file: class, probability, file; for segmentation the picture and the share of each part.
    A file that cannot be read is reported on the error stream, the others are still classified, and the exit code is 1.

    Folders, .tar and .h5 shards are streamed: any number of clouds at constant memory, one JSON line each in
    `predictions.jsonl` of --output. The same command again goes on where it stopped; what was predicted by another
    adapter, or of clouds that have changed since, is never taken for its own.
    """

    run: Annotated[Path, Positional, arg(metavar="RUN")]
    """Run folder of `pointpeft finetune`, or its `adapter` folder alone."""
    files: Annotated[tuple[Path, ...], Positional, arg(metavar="FILE")]
    """Files of any type that `pointpeft finetune` reads: .ply .npy .pcd .las .xyz .off .obj .stl …; folders; shards."""
    json: bool = False
    """Print one JSON list, with the best three classes of each file."""
    category: str | None = None
    """What the clouds are, for part segmentation of several categories."""
    output: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Folder for the labels of points and their pictures, and for the predictions of a stream. None: one of its own for
    each adapter as it is now, `predictions/RUN-CHECKSUM`."""
    batch_size: int = 32
    """Clouds per step of a stream."""
    drop_non_finite: bool = False
    """Drop points that are not finite, as depth cameras mark missing measurements; their number is printed."""
    quiet: bool = False
    """No progress bar."""
    ray: Annotated[str | None, arg(metavar="local|auto|ADDRESS")] = None
    """Deal a stream's shards out by Ray: to the cores or GPUs of this machine (`local`), or to a running cluster, whose
    machines see the same folders. Needs `pip install 'pointpeft[ray]'`."""
    ray_cpus: Annotated[int, arg(metavar="CORES")] = 1
    """Cores of each process, with `--ray`."""
    device: Annotated[str, arg(metavar="cpu|cuda|cuda:N")] = "auto"
    """Where to compute; `auto` takes a GPU where there is one."""


def run(command: Predict) -> int:
    """Classifies the files; 1 when any of them could not be read."""
    from pointpeft.cli.table import print_rows
    from pointpeft.data.stream import is_many
    from pointpeft.runs.evaluate import load_run, predict, predict_points
    from pointpeft.runs.predict import model_fingerprint, predict_stream
    from pointpeft.tasks.base import create_task
    from pointpeft.training.loop import make_accelerator

    if not command.files:
        raise ValueError("name at least one file to classify")
    drop = command.drop_non_finite
    adapted = load_run(command.run, make_accelerator(command.device).device)
    task = create_task(adapted.model.task)
    folder = command.output
    if folder is None:
        run = command.run.resolve()
        name = run.parent.name if run.name == "adapter" else run.name
        folder = Path("predictions") / f"{name}-{model_fingerprint(adapted)[:8]}"
    output = folder / "predictions.jsonl"
    if command.ray is not None:
        if drop:
            raise ValueError("drop_non_finite must not be given with ray")
        if not task.streams:
            raise ValueError("ray must not be given for segmentation, whose files are named one by one")
        from pointpeft.runs.cluster import predict_on_cluster

        options = (command.batch_size, command.device, command.ray, command.ray_cpus)
        result = predict_on_cluster(command.run, list(command.files), output, *options)
        print_rows(_printed(result))
        return 1 if result.errors else 0
    if any(is_many(path) for path in command.files):
        if not task.streams:
            raise ValueError("folders and shards are streamed for classification only; name the files to segment")
        title = None if command.quiet else "predict"
        result = predict_stream(adapted, list(command.files), output, command.batch_size, title, drop_non_finite=drop)
        print_rows(_printed(result))
        return 1 if result.errors else 0
    if drop and not task.can_drop_non_finite:
        raise ValueError(f"drop_non_finite must not be given for {task.name}, which labels every point of a file")
    if task.streams:
        task.category_index(adapted, command.category)
        results = predict(adapted, command.files, drop_non_finite=drop)
    else:
        results = predict_points(adapted, command.files, folder, command.category)
    if command.json:
        print(json.dumps(results, indent=2))
    for result in results:
        if "left_out" in result:
            print(f"{result['file']}: {result['left_out']} points that are not finite are left out", file=sys.stderr)
        if "error" in result:
            print(f"pointpeft: error: {result['error']}", file=sys.stderr)
        elif not command.json and "parts" in result:
            shares = ", ".join(f"{name} {share:.0%}" for name, share in result["parts"].items())
            print(f"{result['picture']}  {shares}")
        elif not command.json:
            print(f"{result['class']:24} {result['probability']:7.1%}  {result['file']}")
    return 1 if any("error" in result for result in results) else 0


def _printed(result: "StreamResult") -> dict[str, Any]:
    return {name: value for name, value in asdict(result).items() if value is not None}
