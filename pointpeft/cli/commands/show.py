"""`pointpeft show`: clouds coloured by predictions and token maps."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg


@dataclass(frozen=True)
class Show:
    """Write a page and pictures of clouds, coloured by class or part, attention, and the method's token maps.

    That is the influence of prompts and what the method shows of itself, such as dynamic scales, dispatched patches or
    what a memory recalls; of scenes the class of each point. The page is one file that needs no network: clouds are
    turned with the mouse. Without files a classifier's test clouds are also placed in a plane by its features.
    """

    run: Annotated[Path, Positional, arg(metavar="RUN")]
    """Run folder of `pointpeft finetune`, or its `adapter` folder alone."""
    files: Annotated[tuple[Path, ...], Positional, arg(metavar="FILE")] = ()
    """Clouds or meshes; none for test clouds of the run, spread over its classes."""
    count: int = 12
    """How many test clouds to show where no file is named."""
    category: str | None = None
    """What the files are, for a model of part segmentation that knows several categories."""
    features: Literal["auto", "tsne", "umap", "pca", "none"] = "auto"
    """How to place the test clouds in a plane; `auto`: t-SNE where scikit-learn is installed, else PCA."""
    output: Path | None = None
    """Folder for show.html, show.png and features.png; RUN/show if not given."""
    drop_non_finite: bool = False
    """Drop points that are not finite, as depth cameras mark missing measurements; their number is printed."""
    up_axis: Annotated[Literal["x", "y", "z"], arg(metavar="x|y|z")] = "z"
    """Which axis of the files points up."""


def run(command: Show) -> int:
    """Writes the page and the pictures."""
    import torch

    from pointpeft.runs.evaluate import clouds_of_run, load_run
    from pointpeft.tasks.base import create_task
    from pointpeft.view import embedding, show
    from pointpeft.view.token_maps import observe

    adapted = load_run(command.run, torch.device("cpu"))
    task = create_task(adapted.model.task)
    if adapted.model.method.inputs:
        raise ValueError(f"the model takes {', '.join(adapted.model.method.inputs)} beside points, which show has not")
    if command.count < 1:
        raise ValueError(f"count must be at least 1, got {command.count}")
    folder = command.output or command.run / "show"
    up_axis, cards, written = str(command.up_axis), [], []
    if command.files:
        category = task.category_index(adapted, command.category)
        for path in command.files:
            dropped: dict[str, int] = {}
            points = task.read(adapted, path, dropped if command.drop_non_finite else False)
            if dropped:
                print(f"{path}: {sum(dropped.values())} points that are not finite are left out", file=sys.stderr)
            cards.append(task.card(adapted, points, path.name, observe, category))
    else:
        if command.category is not None:
            raise ValueError(
                f"category must be left out without files: test clouds have theirs, got {command.category!r}"
            )
        clouds = clouds_of_run(command.run, adapted)
        up_axis = clouds.up_axis
        cards = [task.test_card(adapted, clouds, i, observe) for i in task.examples(clouds, command.count)]
        if command.features != "none" and task.embedded and len(clouds) >= 3:
            places, done = embedding.embed(embedding.features(adapted.model, clouds.fixed()), command.features)
            folder.mkdir(parents=True, exist_ok=True)
            written.append(folder / "features.png")
            title = f"What the head reads of {len(clouds)} test clouds: {done}"
            embedding.write_embedding(written[0], places, clouds.labels, clouds.classes, title)
    for path in (*show.write(folder, cards, up_axis), *written):
        print(path)
    return 0
