"""A comparison as Markdown, LaTeX, CSV and one HTML page with plots."""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

from pointpeft.escapes import csv_text, figure_text, latex_text, markdown_text, one_line
from pointpeft.tasks.base import task_class

# Key of a row, heading (of the scores: that of the task), how it is written.
_SHOWN = (
    ("method", "method", str),
    ("trained", "trained", "{:,}".format),
    ("trained %", "of all", "{:.1f} %".format),
    ("overall", "", str),
    ("by class", "", str),
    ("p", "p", str),
    ("loss", "train loss", str),
    ("seeds", "seeds", str),
    ("peak memory MiB", "memory", "{} MiB".format),
    ("clouds per second", "clouds/s", str),
    ("training seconds", "seconds", "{:.0f}".format),
)
_PLOTS = (("trained", "trained parameters"), ("peak memory MiB", "peak memory, MiB"), ("training seconds", "seconds"))


def _cells(rows: Sequence[dict[str, Any]], task: str) -> tuple[list[str], list[list[str]]]:
    """Headings, and the rows as text."""
    (first, first_heading), (second, second_heading) = task_class(task).columns.items()
    of_task = {"overall": first_heading, "by class": second_heading}
    filled = []
    for row in rows:
        p = row["p against the first"]
        more = {
            "overall": f"{row[first]:.1%} ± {row['std']:.1%}",
            "by class": f"{row[second]:.1%} ± {row['class std']:.1%}",
            "p": "-" if p is None else f"{p:.4f}",
            "loss": "-" if row["training loss"] is None else f"{row['training loss']:.2f}",
        }
        filled.append([write((row | more)[key]) for key, _, write in _SHOWN])
    return [heading or of_task[key] for key, heading, _ in _SHOWN], filled


def caption(rows: Sequence[dict[str, Any]], rule: str) -> str:
    """What a reader needs to judge the numbers."""
    text = f"mean ± standard deviation over seeds; epoch kept: {rule}; "
    if rule == "test-best":
        text += "THE TEST SET CHOSE THE EPOCH, so these accuracies are too high; "
    text += f"p: paired sign-flip test on the test clouds against {rows[0]['method']}; "
    return text + "train loss: of the epoch kept, where it is high a method was trained too little"


def markdown(rows: Sequence[dict[str, Any]], task: str = "classification") -> str:
    """The table for a README."""
    headings, cells = _cells(rows, task)
    lines = ["| " + " | ".join(headings) + " |", "|---|" + "---:|" * (len(headings) - 1)]
    lines += ["| " + " | ".join(map(markdown_text, row)) + " |" for row in cells]
    return "\n".join(lines) + "\n"


def latex(rows: Sequence[dict[str, Any]], rule: str, task: str = "classification") -> str:
    """The table for a paper; it needs the package booktabs."""
    headings, cells = _cells(rows, task)
    lines = [f"% {one_line(caption(rows, rule))}", "\\begin{tabular}{l" + "r" * (len(headings) - 1) + "}", "\\toprule"]
    lines += [" & ".join(map(latex_text, headings)) + " \\\\", "\\midrule"]
    lines += [" & ".join(map(latex_text, row)) + " \\\\" for row in cells]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Every number of every row."""
    return csv_text(list(rows[0]), rows)


def page(rows: Sequence[dict[str, Any]], rule: str, title: str, task: str = "classification") -> str:
    """One HTML page without any outside reference: the table, and accuracy against what it costs."""
    headings, cells = _cells(rows, task)
    head = "".join(f"<th>{html.escape(text)}</th>" for text in headings)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>" for row in cells)
    picture = base64.b64encode(_plots(rows, task)).decode()
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        "<style>body{font:14px sans-serif;margin:2em}table{border-collapse:collapse}"
        "td,th{padding:.3em .7em;border-bottom:1px solid #ccc;text-align:right}"
        "td:first-child,th:first-child{text-align:left}img{max-width:100%}</style>"
        f"<h1>{html.escape(title)}</h1><p>{html.escape(caption(rows, rule))}</p>"
        f"<table><tr>{head}</tr>{body}</table>"
        f'<p><img alt="test accuracy against parameters, memory and time" src="data:image/png;base64,{picture}"></p>'
        "</html>\n"
    )


def _plots(rows: Sequence[dict[str, Any]], task: str) -> bytes:
    from matplotlib.figure import Figure

    score, heading = next(iter(task_class(task).columns.items()))
    figure = Figure(figsize=(5 * len(_PLOTS), 4), layout="constrained")
    for axes, (key, label) in zip(figure.subplots(1, len(_PLOTS), sharey=True), _PLOTS, strict=True):
        for row in rows:
            x, y = row[key], 100 * row[score]
            axes.errorbar(x, y, yerr=100 * row["std"], fmt="o", markersize=4, linewidth=0.8)
            axes.annotate(figure_text(row["method"]), (x, y), fontsize=7, xytext=(3, 3), textcoords="offset points")
        if key == "trained":
            axes.set_xscale("log")
        axes.set_xlabel(label)
    figure.axes[0].set_ylabel(f"{heading}, %")
    file = io.BytesIO()
    figure.savefig(file, dpi=100, format="png")
    return file.getvalue()
