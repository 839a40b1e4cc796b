"""A comparison as Markdown, LaTeX, CSV and one HTML page with plots."""

import base64
import html
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pointpeft.escapes import csv_text, figure_text, latex_text, markdown_text, one_line
from pointpeft.tasks.base import task_class

# Field of a row, heading (of the scores: that of the task), how it is written.
_COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("method", "method", str),
    ("trained", "trained", "{:,}".format),
    ("trained_percent", "of all", "{:.1f} %".format),
    ("score", "", str),
    ("second_score", "", str),
    ("p_value", "p", "{:.4f}".format),
    ("training_loss", "train loss", "{:.2f}".format),
    ("seeds", "seeds", str),
    ("peak_memory_mib", "memory", "{} MiB".format),
    ("clouds_per_second", "clouds/s", str),
    ("training_seconds", "seconds", "{:.0f}".format),
)
_PLOTS = (("trained", "trained parameters"), ("peak_memory_mib", "peak memory, MiB"), ("training_seconds", "seconds"))


@dataclass(frozen=True)
class Row:
    """Results of a method in a comparison, over its seeds.

    Attributes:
        method: As given, METHOD or METHOD:NAME=VALUE,...
        trained: Parameters that were trained.
        trained_percent: Of all parameters.
        trained_without_head: Trained parameters but for those of the head.
        score: Mean over seeds of the first of the task's `columns`.
        second_score: Mean over seeds of the second of them.
        training_loss: Mean over seeds, in the epoch kept; None without logs.
        seeds: How many.
        peak_memory_mib: The largest.
        clouds_per_second: In training; the median.
        training_seconds: The median.
        p_value: Of the paired test against the first method; None for that one, and without predictions.
    """

    method: str
    trained: int
    trained_percent: float
    trained_without_head: int
    score: float
    score_std: float
    second_score: float
    second_score_std: float
    training_loss: float | None
    seeds: int
    peak_memory_mib: int
    clouds_per_second: float
    training_seconds: float
    p_value: float | None


def _cells(rows: Sequence[Row], task: str) -> tuple[list[str], list[list[str]]]:
    """Headings, and the rows as text."""
    score, second_score = task_class(task).columns.values()
    of_task = {"score": score, "second_score": second_score}
    filled = []
    for row in rows:
        values = asdict(row) | {
            "score": f"{row.score:.1%} ± {row.score_std:.1%}",
            "second_score": f"{row.second_score:.1%} ± {row.second_score_std:.1%}",
        }
        filled.append(["-" if values[name] is None else write(values[name]) for name, _, write in _COLUMNS])
    return [heading or of_task[name] for name, heading, _ in _COLUMNS], filled


def caption(rows: Sequence[Row], rule: str) -> str:
    """The caption: how the numbers were measured."""
    text = f"mean ± standard deviation over seeds; epoch kept: {rule}; "
    if rule == "test-best":
        text += "THE TEST SET CHOSE THE EPOCH, so these accuracies are too high; "
    text += f"p: paired sign-flip test on the test clouds against {rows[0].method}; "
    return text + "train loss: of the epoch kept, where it is high a method was trained too little"


def markdown(rows: Sequence[Row], task: str = "classification") -> str:
    """The table for a README."""
    headings, cells = _cells(rows, task)
    lines = ["| " + " | ".join(headings) + " |", "|---|" + "---:|" * (len(headings) - 1)]
    lines += ["| " + " | ".join(map(markdown_text, row)) + " |" for row in cells]
    return "\n".join(lines) + "\n"


def latex(rows: Sequence[Row], rule: str, task: str = "classification") -> str:
    """The table for a paper; it needs the package booktabs."""
    headings, cells = _cells(rows, task)
    lines = [f"% {one_line(caption(rows, rule))}", "\\begin{tabular}{l" + "r" * (len(headings) - 1) + "}", "\\toprule"]
    lines += [" & ".join(map(latex_text, headings)) + " \\\\", "\\midrule"]
    lines += [" & ".join(map(latex_text, row)) + " \\\\" for row in cells]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def as_csv(rows: Sequence[Row], task: str = "classification") -> str:
    """Every number of every row; the scores have the names that the task's results give them."""
    score, second_score = task_class(task).columns
    named = {"score": score, "score_std": f"{score}_std"}
    named |= {"second_score": second_score, "second_score_std": f"{second_score}_std"}
    table = [{named.get(name, name): value for name, value in asdict(row).items()} for row in rows]
    return csv_text(list(table[0]), table)


def page(rows: Sequence[Row], rule: str, title: str, task: str = "classification") -> str:
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


def _plots(rows: Sequence[Row], task: str) -> bytes:
    from matplotlib.figure import Figure

    heading = next(iter(task_class(task).columns.values()))
    figure = Figure(figsize=(5 * len(_PLOTS), 4), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, len(_PLOTS), sharey=True), _PLOTS, strict=True):
        for row in rows:
            x, y = getattr(row, name), 100 * row.score
            axes.errorbar(x, y, yerr=100 * row.score_std, fmt="o", markersize=4, linewidth=0.8)
            axes.annotate(figure_text(row.method), (x, y), fontsize=7, xytext=(3, 3), textcoords="offset points")
        if name == "trained":
            axes.set_xscale("log")
        axes.set_xlabel(label)
    figure.axes[0].set_ylabel(f"{heading}, %")
    file = io.BytesIO()
    figure.savefig(file, dpi=100, format="png")
    return file.getvalue()
