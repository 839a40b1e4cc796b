"""Pages and pictures of clouds, coloured by the predictions and the token maps of an adapted model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pointpeft.drawing import viewer
from pointpeft.drawing.card import CLASS, DEPTH, PART, POINT_CLASS, TRUE_PART, TRUE_POINT_CLASS, Card
from pointpeft.escapes import figure_text, fill, json_in_script
from pointpeft.files import write_atomically
from pointpeft.tasks.parts.report import draw_amounts, draw_cloud
from pointpeft.training.run_folder import write_text
from pointpeft.view.token_maps import meanings

LARGE_DOTS = 4000  # clouds of more points are drawn with small ones
MEANINGS = {
    DEPTH: "nearer points are lighter",
    CLASS: "the predicted class of the cloud",
    PART: "the predicted part of each point",
    TRUE_PART: "the true part of each point",
    POINT_CLASS: "the predicted class of each point of the scene; without the ceiling, which hides it",
    TRUE_POINT_CLASS: "the true class of each point of the scene; without the ceiling",
}


def layer_meanings() -> dict[str, str]:
    """Meanings of the layers of the page, by name."""
    return MEANINGS | meanings()


def entry(card: Card) -> dict[str, Any]:
    """A card for the script of a page, ready for JSON."""
    named = {name: viewer.classes(labels, names) for name, (labels, names) in card.labels.items()}
    return {
        "name": card.name,
        "true": card.true,
        "predicted": card.predicted,
        "confidence": card.confidence,
        "memory": [f"{column} ({cosine:.2f})" for column, cosine in card.memory],
        "points": viewer.quantised(card.xyz),
        "layers": named | {name: viewer.amounts(values) for name, values in card.amounts.items()},
    }


def page(cards: Sequence[Card], up_axis: str) -> str:
    """One HTML page without any outside reference: the clouds, and a choice of what colours them."""
    entries = [entry(card) for card in cards]
    known = [DEPTH, *dict.fromkeys(name for card in entries for name in card["layers"])]
    explained = layer_meanings()
    values = {
        "UP": viewer.up_options(up_axis),
        "STYLE": viewer.STYLE,
        "VIEWER": viewer.SCRIPT,
        "LAYERS": viewer.LAYERS,
        "MEANINGS": json_in_script({name: explained[name] for name in known}),
        "DATA": json_in_script(entries),
    }
    return fill(PAGE, values)


def picture(cards: Sequence[Card], up_axis: str) -> Any:
    """A figure with a row per cloud and a column per layer."""
    from matplotlib.figure import Figure  # no pyplot: it would choose a window system

    columns = list(dict.fromkeys(name for card in cards for name in (*card.labels, *card.amounts)))
    figure = Figure(figsize=(3.4 * len(columns), 3.4 * len(cards)), layout="constrained")
    for i, card in enumerate(cards):
        size = 4 if len(card.xyz) <= LARGE_DOTS else 1
        for j, name in enumerate(columns):
            axes = figure.add_subplot(len(cards), len(columns), i * len(columns) + j + 1, projection="3d")
            axes.set_axis_off()
            title = (
                name
                if j
                else f"{card.predicted}{'' if card.confidence is None else f' {card.confidence:.0%}'}\n{card.name}"
            )
            axes.set_title(figure_text(title), fontsize=8)
            if name in card.labels:
                labels, names = card.labels[name]
                handles = draw_cloud(axes, card.xyz, labels, range(len(names)), up_axis, size=size)
                if name != CLASS:
                    present = labels.unique().tolist()
                    axes.legend(
                        [handles[part] for part in present],
                        [figure_text(names[part]) for part in present],
                        fontsize=6,
                        markerscale=3,
                    )
            elif name in card.amounts:
                drawn = draw_amounts(axes, card.xyz, card.amounts[name], up_axis, size=size)
                figure.colorbar(drawn, ax=axes, shrink=0.6)
    return figure


def write(folder: Path, cards: Sequence[Card], up_axis: str) -> tuple[Path, Path]:
    """Writes show.html and show.png into a folder and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "show.html", page(cards, up_axis))
    figure = picture(cards, up_axis)
    write_atomically(folder / "show.png", lambda path: figure.savefig(path, dpi=120, format="png"))
    return folder / "show.html", folder / "show.png"


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Clouds as the model sees them</title>
<meta name="viewport" content="width=device-width">
<style>
@STYLE@#grid{grid-template-columns:repeat(auto-fill,minmax(340px,1fr))}
</style></head><body>
<h1>Clouds as the model sees them</h1>
<p><label>Colour <select id="layer"></select></label> <label>Up axis <select id="up">@UP@</select></label>
<small>drag to turn, wheel to zoom, double click to reset</small></p>
<p id="meaning"></p>
<div id="grid"></div>
<script>
"use strict";
@VIEWER@
@LAYERS@
known(@MEANINGS@);
const clouds = @DATA@;
for (const cloud of clouds) {
  const figure = document.createElement("figure"), canvas = document.createElement("canvas");
  figure.appendChild(canvas);
  const caption = document.createElement("figcaption");
  const right = cloud.true === null || cloud.true === cloud.predicted;
  text(caption, "span", cloud.predicted + (cloud.confidence === null ? "" : ` ${(100 * cloud.confidence).toFixed(0)}%`),
    right ? "true" : "wrong");
  if (!right) text(caption, "span", `, is ${cloud.true}`);
  caption.appendChild(document.createElement("br"));
  text(caption, "small", cloud.name);
  if (cloud.memory.length) {
    caption.appendChild(document.createElement("br"));
    text(caption, "small", "recalls columns of the memory bank: " + cloud.memory.join(", "));
  }
  caption.appendChild(document.createElement("br"));
  const legend = document.createElement("small");
  caption.appendChild(legend);
  figure.appendChild(caption);
  document.getElementById("grid").appendChild(figure);
  add(open(canvas, cloud.points), cloud.layers, legend);
}
choose(); // the grid is as wide as it will be
</script></body></html>
"""
