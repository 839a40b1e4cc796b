"""How time grows with N: a table and a plot of the rows that say their `n`, which bench_growth.py makes."""

import math
import os
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

Lines = dict[str, dict[str, list[tuple[int, float]]]]
"""Operation, contender: (N, milliseconds) in the order of N."""


class Point(NamedTuple):
    """One measurement: who did what on how many points, and the milliseconds."""

    operation: str
    contender: str
    n: int
    milliseconds: float


def lines_of(points: list[Point]) -> Lines:
    """The points as lines, of operations that have at least two sizes."""
    lines: Lines = defaultdict(lambda: defaultdict(list))
    for point in sorted(points, key=lambda point: point.n):
        lines[point.operation][point.contender].append((point.n, point.milliseconds))
    return {name: found for name, found in lines.items() if max(map(len, found.values())) > 1}


def exponent(points: list[tuple[int, float]]) -> float:
    """The power of N by which time grows over the last two sizes; N log N has 1.08 from 100 000 to a million."""
    (n, before), (m, after) = points[-2:]
    return math.log(after / before) / math.log(m / n)


def table(measured: list[Point]) -> list[str]:
    """Milliseconds at each N, and the exponent at the end, as lines of Markdown; nothing where nothing grows."""
    lines = lines_of(measured)
    if not lines:
        return []
    sizes = sorted({n for contenders in lines.values() for points in contenders.values() for n, _ in points})
    text = ["### Growth", "", "Milliseconds on one cloud of N points, and the power of N over the last two sizes.", ""]
    text.append(f"| operation | contender | {' | '.join(f'{n:,}' for n in sizes)} | power |")
    text.append(f"|---|---|{'---:|' * (len(sizes) + 1)}")
    for name, contenders in lines.items():
        for contender, points in contenders.items():
            times = dict(points)
            cells = [f"{times[n]:.3f}" if n in times else "-" for n in sizes]
            cells.append(f"{exponent(points):.2f}" if len(points) > 1 else "-")
            text.append(f"| {name} | {contender} | {' | '.join(cells)} |")
    return [*text, ""]


def plot(measured: list[Point], target: Path) -> bool:
    """Draws time against N, a panel an operation, with N log N and N² through our last point; whether there was any."""
    lines = lines_of(measured)
    if not lines:
        return False
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(4, len(lines))
    figure, axes = plt.subplots(
        -(-len(lines) // columns), columns, figsize=(4 * columns, 3.4 * -(-len(lines) // columns)), squeeze=False
    )
    for axis in axes.flat[len(lines) :]:
        axis.set_visible(False)
    for axis, (name, contenders) in zip(axes.flat, lines.items(), strict=False):
        for contender, points in contenders.items():
            label = f"{contender}, N^{exponent(points):.2f} at the end" if len(points) > 1 else contender
            axis.loglog(*zip(*points, strict=True), marker="o", label=label)
        last, time = contenders.get("pointpeft", next(iter(contenders.values())))[-1]
        sizes = [n for n, _ in max(contenders.values(), key=len)]
        n_log_n = [time * n * math.log(n) / (last * math.log(last)) for n in sizes]
        axis.loglog(sizes, n_log_n, color="0.6", linestyle="--", label="N log N")
        axis.loglog(sizes, [time * (n / last) ** 2 for n in sizes], color="0.8", linestyle=":", label="N²")
        axis.set(
            title=name,
            xlabel="N",
            ylabel="median ms",
            ylim=(0.3 * min(t for p in contenders.values() for _, t in p), None),
        )
        axis.legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    temporary = target.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=110)
    plt.close(figure)
    os.replace(temporary, target)
    return True
