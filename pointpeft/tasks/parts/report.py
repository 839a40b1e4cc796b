"""Pictures of predicted parts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pointpeft.escapes import figure_text
from pointpeft.files import write_atomically
from pointpeft.tasks.classification.report import draw_curves
from pointpeft.tasks.parts.batches import PartClouds
from pointpeft.tasks.parts.metrics import PartMetrics

SHOWN = 12  # clouds in the picture: from the worst to the best, evenly spaced by rank
COLUMNS = 3


def write_part_report(
    folder: Path,
    clouds: PartClouds,
    predicted: Tensor,
    metrics: PartMetrics,
    history: Sequence[dict[str, float]] = (),
    selected: int | None = None,
) -> None:
    """Writes `parts.png` and, where there is a history, `curves.png`.

    Args:
        folder: Where to.
        clouds: `PartClouds`.
        predicted: Part of each of `clouds.fixed()`. [M, N]
        metrics: `PartMetrics` of them.
        history: Rows of the log.
        selected: The epoch kept.
    """
    from matplotlib.figure import Figure  # no pyplot: it would choose a window system

    order = metrics.cloud_iou.argsort()
    chosen = order[torch.linspace(0, len(order) - 1, min(SHOWN, len(order))).round().long()].tolist()
    xyz, parts = clouds.fixed(), clouds.fixed_parts()
    rows = -(-len(chosen) // COLUMNS)
    figure = Figure(figsize=(4.4 * min(COLUMNS, len(chosen)), 2.5 * rows + 0.6), layout="constrained")
    for place, i in enumerate(chosen):
        named = f"{clouds.classes[clouds.labels[i]]} {metrics.cloud_iou[i]:.0%}"
        columns = 2 * min(COLUMNS, len(chosen))
        for side, (title, labels) in enumerate(((f"{named}: true", parts[i]), ("predicted", predicted[i]))):
            axes = figure.add_subplot(rows, columns, 2 * place + side + 1, projection="3d")
            candidates = clouds.parts_of[clouds.labels[i]]
            draw_cloud(axes, xyz[i], labels, candidates, clouds.up_axis)
            axes.set_title(figure_text(title), fontsize=8)
    figure.suptitle(f"instance mIoU {metrics.instance_miou:.1%}, class mIoU {metrics.class_miou:.1%}; worst first")
    write_atomically(folder / "parts.png", lambda path: figure.savefig(path, dpi=110, format="png"))
    if history:
        curves = Figure(figsize=(8, 3.2), layout="constrained")
        draw_curves(curves, history, selected, "mIoU")
        write_atomically(folder / "curves.png", lambda path: curves.savefig(path, dpi=110, format="png"))


def write_prediction(
    path: Path, points: Tensor, labels: Tensor, parts: Sequence[str], up_axis: str, title: str
) -> None:
    """Draws one cloud from two sides with a legend of its parts.

    Args:
        path: The PNG file.
        points: [N, 3]
        labels: Part of each. [N]
        parts: Names of all parts.
        up_axis: Of the picture.
        title: Above it.
    """
    from matplotlib.figure import Figure

    present = labels.unique().tolist()
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    handles: Any = ()
    for place, turn in enumerate((-60, 30)):
        axes = figure.add_subplot(1, 2, place + 1, projection="3d")
        handles = draw_cloud(axes, points, labels, present, up_axis, turn)
    figure.legend(
        handles, [figure_text(parts[part]) for part in present], loc="outside right center", fontsize=8, markerscale=5
    )
    figure.suptitle(figure_text(title))
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110, format="png"))


def draw_cloud(
    axes: Any, points: Tensor, labels: Tensor, parts: Sequence[int], up_axis: str, turn: float = -60, size: float = 2
) -> list[Any]:
    """Draws points coloured by part; returns what a legend needs, in the order of `parts`."""
    from matplotlib import colormaps

    palette = colormaps["tab20" if len(parts) > 10 else "tab10"]
    turned = points[:, _axes(up_axis)]
    handles = []
    for k, part in enumerate(parts):
        selected = turned[labels == part]
        handles.append(axes.scatter(*selected.unbind(1), s=size, color=palette(k % palette.N), linewidths=0))
    _frame(axes, turned, turn)
    return handles


def draw_amounts(axes: Any, points: Tensor, values: Tensor, up_axis: str, turn: float = -60, size: float = 2) -> Any:
    """Draws points coloured by a number each; returns what a colour bar needs. [N, 3], [N]"""
    turned = points[:, _axes(up_axis)]
    drawn = axes.scatter(*turned.unbind(1), c=values, s=size, cmap="viridis", linewidths=0)
    _frame(axes, turned, turn)
    return drawn


def _axes(up_axis: str) -> list[int]:
    """The columns of a cloud's coordinates as they are drawn, the one that points up last."""
    up = "xyz".index(up_axis)
    return [(up + 1) % 3, (up + 2) % 3, up]


def _frame(axes: Any, turned: Tensor, turn: float) -> None:
    low, high = turned.amin(0), turned.amax(0)
    middle = (low + high) / 2
    # The picture shows a ball around the middle, of 1.05 half widths: corners of a room lie farther out.
    farthest = float((turned - middle).norm(dim=1).max())
    half = max(float((high - low).max()) / 2, farthest / 1.05) or 1.0
    for axis, set_limits in enumerate((axes.set_xlim, axes.set_ylim, axes.set_zlim)):
        set_limits(float(middle[axis]) - half, float(middle[axis]) + half)
    axes.set_box_aspect((1, 1, 1), zoom=1.6)  # the default leaves half of the picture empty
    axes.set_axis_off()
    axes.view_init(elev=20, azim=turn)
