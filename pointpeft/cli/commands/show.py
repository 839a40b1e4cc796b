"""`pointpeft show`: clouds coloured by what the adapted model makes of them."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg


@dataclass(frozen=True)
class Show:
    """Write a page and pictures of clouds, coloured by class or part, attention, and what the method does with patches.

    That is the influence of prompts, DAPT's dynamic scale, which patches DyT keeps, and what Point-PEFT's memory
    recalls; of rooms the class of each point. The page is one file that needs no network: clouds are turned with the
    mouse. Without files a classifier's test clouds are also placed in a plane by its features.
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
    """Leave points out that are not finite, as depth cameras mark what they did not see; how many is said."""
    up_axis: Annotated[Literal["x", "y", "z"], arg(metavar="x|y|z")] = "z"
    """Which axis of the files points up."""


def run(command: Show) -> int:
    """Writes the page and the pictures."""
    import torch

    from pointpeft.data import read_points
    from pointpeft.runs.evaluate import category_index, clouds_of_run, load_run
    from pointpeft.tasks.batches import fit
    from pointpeft.view import embedding, show

    adapted = load_run(command.run, torch.device("cpu"))
    rooms = adapted.model.task == "semantic_segmentation"
    if adapted.model.method.inputs:
        raise ValueError(f"the model takes {', '.join(adapted.model.method.inputs)} beside points, which show has not")
    if command.count < 1:
        raise ValueError(f"count must be at least 1, got {command.count}")
    if rooms and command.category is not None:
        raise ValueError(f"category must not be given for rooms, got {command.category!r}")
    dense, folder = adapted.model.dense, command.output or command.run / "show"
    up_axis, cards, written = str(command.up_axis), [], []
    if command.files:
        kind = category_index(adapted, command.category) if dense and not rooms else 0
        for path in command.files:
            dropped: dict[str, int] = {}
            drop = dropped if command.drop_non_finite else False
            points = read_points(path, normalized=adapted.normalized, from_corner=rooms, drop_non_finite=drop)
            if dropped:
                print(f"{path}: {sum(dropped.values())} points that are not finite are left out", file=sys.stderr)
            if rooms:
                cards.append(show.room_card(adapted, points, path.name))
                continue
            points = fit(points, adapted.num_points)
            card = show.part_card(adapted, points, path.name, kind) if dense else None
            cards.append(card or show.class_card(adapted, points, path.name))
    elif rooms:
        clouds = clouds_of_run(command.run, adapted)
        up_axis = clouds.up_axis
        for i in range(min(command.count, len(clouds))):
            cards.append(show.room_card(adapted, clouds.points[i], clouds.names[i], clouds.point_labels[i]))
    else:
        clouds = clouds_of_run(command.run, adapted)
        up_axis = clouds.up_axis
        fixed = clouds.fixed()
        for i in _spread(clouds.labels, command.count):
            kind = int(clouds.labels[i])
            if dense:
                cards.append(show.part_card(adapted, fixed[i], clouds.names[i], kind, clouds.fixed_parts()[i]))
            else:
                cards.append(show.class_card(adapted, fixed[i], clouds.names[i], clouds.classes[kind]))
        if command.features != "none" and not dense and len(clouds) >= 3:
            places, done = embedding.embed(embedding.features(adapted.model, fixed), command.features)
            folder.mkdir(parents=True, exist_ok=True)
            written.append(folder / "features.png")
            title = f"What the head reads of {len(clouds)} test clouds: {done}"
            embedding.write_embedding(written[0], places, clouds.labels, clouds.classes, title)
    for path in (*show.write(folder, cards, up_axis), *written):
        print(path)
    return 0


def _spread(labels: Any, count: int) -> list[int]:
    """Indices of clouds, one of each class before a second of any."""
    turn = [int((labels[:i] == label).sum()) for i, label in enumerate(labels)]
    return sorted(range(len(turn)), key=turn.__getitem__)[:count]
