"""Plots of a run, and a page on which the misclassified clouds can be turned with the mouse."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pointpeft.drawing import viewer
from pointpeft.escapes import csv_text, figure_text, fill, json_in_script
from pointpeft.files import write_atomically
from pointpeft.tasks.batches import Clouds
from pointpeft.tasks.classification.metrics import Metrics
from pointpeft.training.run_folder import write_text

SHOWN = 60  # misclassified clouds on the page, the most confident mistakes first
POINTS = 1024  # points drawn of each


def write_report(
    folder: Path,
    clouds: Clouds,
    logits: Tensor,
    metrics: Metrics,
    history: Sequence[dict[str, float]] = (),
    selected: int | None = None,
    beside: Sequence[str] = (),
) -> None:
    """Writes the answers and pictures of a run into the folder.

    `predictions.csv` (a row per cloud), `confusion.png`, `curves.png` (where there is a history) and `report.html`.
    """
    from matplotlib.figure import Figure  # no pyplot: it would choose a window system

    figure = Figure(figsize=(2.5 + 0.42 * len(clouds.classes), 2.2 + 0.42 * len(clouds.classes)), layout="constrained")
    _draw_confusion(figure, metrics, clouds.classes)
    write_atomically(folder / "confusion.png", lambda path: figure.savefig(path, dpi=110, format="png"))
    if history:
        curves = Figure(figsize=(8, 3.2), layout="constrained")
        draw_curves(curves, history, selected)
        write_atomically(folder / "curves.png", lambda path: curves.savefig(path, dpi=110, format="png"))
    write_text(folder / "predictions.csv", _answers(clouds, logits))
    write_text(folder / "report.html", page(clouds, logits, metrics, beside))


def _answers(clouds: Clouds, logits: Tensor) -> str:
    confidence, predicted = logits.softmax(1).max(1)
    rows = (
        (name, clouds.classes[true], clouds.classes[answer], f"{probability:.4f}")
        for name, true, answer, probability in zip(
            clouds.names, clouds.labels.tolist(), predicted.tolist(), confidence.tolist(), strict=True
        )
    )
    return csv_text(("cloud", "class", "predicted", "probability"), rows)


def _draw_confusion(figure: Any, metrics: Metrics, classes: Sequence[str]) -> None:
    counts = metrics.confusion
    rates = counts / counts.sum(1, keepdim=True).clamp(min=1)
    axes = figure.add_subplot()
    axes.imshow(rates.numpy(), cmap="Blues", vmin=0, vmax=1)
    names = [figure_text(name) for name in classes]
    axes.set_xticks(range(len(classes)), names, rotation=90)
    axes.set_yticks(range(len(classes)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(classes) <= 50:
        for i, row in enumerate(counts.tolist()):
            for j, count in enumerate(row):
                if count:
                    color = "white" if rates[i, j] > 0.6 else "black"
                    axes.text(j, i, str(count), ha="center", va="center", fontsize=7, color=color)
    axes.set_title(f"OA {metrics.overall_accuracy:.1%}, mAcc {metrics.mean_class_accuracy:.1%}")


def draw_curves(
    figure: Any, history: Sequence[dict[str, float]], selected: int | None, measure: str = "accuracy"
) -> None:
    """Draws the losses of a log, and the numbers whose names end in `measure`, by epoch."""
    epochs = [row["epoch"] for row in history]
    left, right = figure.subplots(1, 2)
    for axes, word in ((left, "loss"), (right, measure)):
        for name in dict.fromkeys(name for row in history for name in row if name.endswith(word)):
            axes.plot(epochs, [row.get(name) for row in history], label="training loss" if name == "loss" else name)
        if selected is not None:
            axes.axvline(selected, color="grey", linewidth=0.8, linestyle="--", label="selected epoch")
        axes.set_xlabel("epoch")
        axes.set_ylabel(word)
        axes.legend(fontsize=7)


def page(clouds: Clouds, logits: Tensor, metrics: Metrics, beside: Sequence[str] = ()) -> str:
    """One HTML page without any outside reference: metrics, what they stand beside, and the misclassified clouds."""
    probabilities = logits.softmax(1)
    confidence, predicted = probabilities.max(1)
    wrong = (predicted != clouds.labels).nonzero().flatten()
    shown = wrong[confidence[wrong].argsort(descending=True, stable=True)][:SHOWN]
    cards = []
    for i in shown.tolist():
        cards.append(
            {
                "name": clouds.names[i],
                "true": clouds.classes[clouds.labels[i]],
                "predicted": clouds.classes[predicted[i]],
                "confidence": round(float(confidence[i]), 3),
                "true_confidence": round(float(probabilities[i, clouds.labels[i]]), 3),
                "points": viewer.quantised(clouds.points[i][:POINTS]),
            }
        )
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{entry['clouds']}</td>"
        f"<td>{'-' if entry['accuracy'] is None else format(entry['accuracy'], '.1%')}</td></tr>"
        for name, entry in metrics.per_class(clouds.classes).items()
    )
    count = f"{len(wrong)} of {metrics.clouds} clouds misclassified"
    if len(wrong) > len(shown):
        count += f"; the {len(shown)} surest mistakes are shown"
    values = {
        "SUMMARY": f"OA {metrics.overall_accuracy:.2%} · mAcc {metrics.mean_class_accuracy:.2%} · {count}",
        "BESIDE": "".join(f"<p>{html.escape(sentence)}</p>" for sentence in beside),
        "ROWS": rows,
        "UP": viewer.up_options(clouds.up_axis),
        "STYLE": viewer.STYLE,
        "VIEWER": viewer.SCRIPT,
        "DATA": json_in_script(cards),
    }
    return fill(PAGE, values)


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Misclassified clouds</title>
<meta name="viewport" content="width=device-width">
<style>
@STYLE@</style></head><body>
<h1>Misclassified clouds</h1><p>@SUMMARY@</p>@BESIDE@
<details><summary>Accuracy by class</summary><table><tr><th>class</th><th>clouds</th><th>right</th></tr>@ROWS@</table>
</details>
<p><label>Up axis <select id="up">@UP@</select></label>
<small>drag to turn, wheel to zoom, double click to reset</small></p>
<div id="grid"></div>
<script>
"use strict";
@VIEWER@
const clouds = @DATA@;
for (const cloud of clouds) {
  const figure = document.createElement("figure"), canvas = document.createElement("canvas");
  figure.appendChild(canvas);
  const caption = document.createElement("figcaption");
  text(caption, "span", `${cloud.predicted} ${(100 * cloud.confidence).toFixed(0)}%`, "wrong");
  text(caption, "span", ", is ");
  text(caption, "span", `${cloud.true} ${(100 * cloud.true_confidence).toFixed(0)}%`, "true");
  caption.appendChild(document.createElement("br"));
  text(caption, "small", cloud.name);
  figure.appendChild(caption);
  document.getElementById("grid").appendChild(figure);
  open(canvas, cloud.points);
}
views.forEach(draw); // the grid is as wide as it will be
</script></body></html>
"""
