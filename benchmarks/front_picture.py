"""Draws the picture of the README: clouds as an adapted model sees them, and what each method trains and reaches.

python -m pointpeft finetune
python -m benchmarks.front_picture runs/finetune-furniture-dapt
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure

from pointpeft.drawing.card import Card
from pointpeft.files import write_atomically
from pointpeft.methods import method_class
from pointpeft.runs.evaluate import clouds_of_run, load_run
from pointpeft.tasks.adapted import Adapted
from pointpeft.tasks.base import create_task
from pointpeft.view.token_maps import observe

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results" / "methods.csv"
TARGET = ROOT / "docs" / "pictures" / "front.png"
SHOWN = ("bed", "lamp", "tree")  # classes of the furniture of which a test cloud is drawn
FAMILIES = {"adapters": "tab:blue", "prompts": "tab:green", "reparameterized": "tab:orange", "selective": "tab:gray"}
# Methods with their name in the picture, and where it stands from the point, in points of the page.
NAMED = {
    "idpt": (9, -3),
    "point_gst": (9, -3),
    "rslora": (9, -3),
    "dapt": (8, 3),
    "adapter_x": (-50, -4),
    "stag": (10, -3),
    "unipelt": (-14, -16),
    "full": (-8, 12),
    "linear": (-8, -19),
    "point_peft": (9, -10),
    "full:checkpoint=none": (-82, 14),
}
RENAMED = {"linear": "head alone", "full:checkpoint=none": "full, no pre-training"}


def choose_cards(adapted: Adapted, clouds: Any) -> list[Card]:
    """The test cloud of each class in `SHOWN` that the model names rightly with the highest probability."""
    task, chosen = create_task(adapted.model.task), []
    for name in SHOWN:
        own = (clouds.labels == clouds.classes.index(name)).nonzero().flatten().tolist()
        cards = [task.test_card(adapted, clouds, i, observe) for i in own]
        chosen.append(max(cards, key=lambda card: (card.predicted == name) * (card.confidence or 0.0)))
    return chosen


def draw_points(axes: Any, xyz: torch.Tensor, up_axis: str, title: str, **colour: Any) -> None:
    """Draws one cloud without axes, upright. [N, 3]"""
    up = "xyz".index(up_axis)
    turned = xyz[:, [(up + 1) % 3, (up + 2) % 3, up]]
    axes.scatter(*turned.unbind(1), s=4, linewidths=0, **colour)
    middle = (turned.amin(0) + turned.amax(0)) / 2
    half = float((turned - middle).abs().max())
    for center, set_limits in zip(middle.tolist(), (axes.set_xlim, axes.set_ylim, axes.set_zlim), strict=True):
        set_limits(center - half, center + half)
    axes.set_box_aspect((1, 1, 1), zoom=1.25)
    axes.set_axis_off()
    axes.view_init(elev=18, azim=-55)
    axes.set_title(title, fontsize=9, y=0.98)


def draw_clouds(figure: Any, run: Path) -> None:
    """Draws two rows: clouds in the colour of their class, and in that of the attention of the last block."""
    adapted = load_run(run, torch.device("cpu"))
    clouds = clouds_of_run(run, adapted)
    palette = colormaps["Dark2"]
    axes = figure.subplots(2, len(SHOWN), subplot_kw={"projection": "3d"}, gridspec_kw={"wspace": 0, "hspace": 0.02})
    for column, card in enumerate(choose_cards(adapted, clouds)):
        title = f"{card.predicted} ({card.confidence:.0%})" + (
            "" if card.predicted == card.true else f", is {card.true}"
        )
        draw_points(axes[0, column], card.xyz, clouds.up_axis, title, color=palette(column))
        values = card.amounts["attention"]
        draw_points(axes[1, column], card.xyz, clouds.up_axis, "attention", c=values, cmap="viridis")


def draw_methods(axes: Any, rows: list[dict[str, str]]) -> None:
    """Draws accuracy against trained parameters: a dot per method, as large as the memory that its training takes."""
    drawn = []
    for row in rows:
        name = row["method"]
        family = method_class(name.partition(":")[0]).__module__.split(".")[2]
        x, y, std = int(row["trained"]), float(row["ModelNet40 mean (%)"]), float(row["ModelNet40 std (%)"])
        size = (float(row["memory (MiB)"]) - 480) / 2
        axes.errorbar(x, y, std, color=FAMILIES[family], alpha=0.25, linewidth=1)
        drawn.append(axes.scatter(x, y, s=size, color=FAMILIES[family], alpha=0.75, linewidths=0, zorder=3))
        if name in NAMED:
            axes.annotate(
                RENAMED.get(name, name), (x, y), NAMED[name], textcoords="offset points", fontsize=8, zorder=4
            )
    axes.set_xscale("log")
    axes.set_xlim(1.05e5, 1.05e6)
    axes.set_ylim(64.5, 82.5)
    ticks = [125_000, 250_000, 500_000, 1_000_000]
    axes.set_xticks(ticks, [f"{tick / 1e3:,.0f} k" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("trained parameters, head included")
    axes.set_ylabel("accuracy, %")
    axes.set_title("20 classes of ModelNet40, 10 clouds each: mean ± std of 3 seeds", fontsize=10)
    handles = [axes.scatter([], [], s=40, color=colour, label=family) for family, colour in FAMILIES.items()]
    sizes = [
        axes.scatter([], [], s=(memory - 480) / 2, color="lightgray", label=f"{memory} MiB")
        for memory in (550, 650, 850)
    ]
    axes.legend(
        handles=[*handles, *sizes], fontsize=8, loc="upper right", ncols=2, title="family, memory", title_fontsize=8
    )
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Reads the run and the table, and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of `pointpeft finetune`")
    parser.add_argument("--output", type=Path, default=TARGET)
    chosen = parser.parse_args()
    with RESULTS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(12, 4.4))
    left, right = figure.subfigures(1, 2, width_ratios=(1.05, 1))
    draw_clouds(left, chosen.run)
    left.subplots_adjust(0, 0.01, 1, 0.95)
    draw_methods(right.subplots(), rows)
    right.subplots_adjust(0.11, 0.13, 0.99, 0.92)
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(chosen.output, lambda path: figure.savefig(path, dpi=100, format="png"))
    print(chosen.output)


if __name__ == "__main__":
    main()
