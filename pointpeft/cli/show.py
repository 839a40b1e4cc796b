"""`pointpeft show`: clouds coloured by what the adapted model makes of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass(frozen=True)
class Show:
    """Write a page and a picture of clouds, coloured by class, attention and DAPT's dynamic scale.

    The page is one file that needs no network: clouds are turned with the mouse.
    """

    run: Annotated[Path, Positional, arg(metavar="RUN")]
    """Run folder of `pointpeft finetune`, or its `adapter` folder alone."""
    files: Annotated[tuple[Path, ...], Positional, arg(metavar="FILE")] = ()
    """Clouds or meshes; none for test clouds of the run, spread over its classes."""
    count: int = 12
    """How many test clouds to show where no file is named."""
    output: Path | None = None
    """Folder for show.html and show.png; RUN/show if not given."""
    up_axis: Annotated[str, arg(metavar="y|z")] = "z"
    """Which axis of the files points up."""


def run(command: Show) -> int:
    """Writes the page and the picture."""
    import torch

    from pointpeft.data import read_points
    from pointpeft.training import show
    from pointpeft.training.clouds import fit
    from pointpeft.training.evaluation import clouds_of_run, load_run

    adapted = load_run(command.run, torch.device("cpu"))
    if adapted.model.task != "classification":
        raise ValueError(f"show is for classification; the run's task is {adapted.model.task}, which `predict` draws")
    if command.up_axis not in ("y", "z"):
        raise ValueError(f"up_axis must be y or z, got {command.up_axis!r}")
    if command.count < 1:
        raise ValueError(f"count must be at least 1, got {command.count}")
    up_axis, cards = command.up_axis, []
    for path in command.files:
        points = fit(read_points(path, normalized=adapted.normalized), adapted.num_points)
        cards.append(show.card(adapted.model, points, adapted.classes, path.name))
    if not command.files:
        clouds = clouds_of_run(command.run, adapted)
        up_axis = clouds.up_axis
        # One of each class before a second of any.
        turn = [int((clouds.labels[:i] == label).sum()) for i, label in enumerate(clouds.labels)]
        for i in sorted(range(len(clouds)), key=turn.__getitem__)[: command.count]:
            points, true = fit(clouds.points[i], adapted.num_points), clouds.classes[clouds.labels[i]]
            cards.append(show.card(adapted.model, points, adapted.classes, clouds.names[i], true))
    for path in show.write(command.output or command.run / "show", cards, adapted.classes, up_axis):
        print(path)
    return 0
