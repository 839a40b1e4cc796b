"""Writes benchmarks/RESULTS.md, and a plot of time against size for each operation, from pytest-benchmark's JSON.

python -m pytest benchmarks --benchmark-only --benchmark-json=benchmarks/results/cpu.json
python -m benchmarks.report benchmarks/results/cpu.json
"""

import argparse
import json
import os
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.report_methods import tables_of_methods

FOLDER = Path(__file__).resolve().parent


def _milliseconds(row: dict[str, Any]) -> float:
    return 1e3 * row["extra_info"].get("cuda_event_seconds", row["stats"]["median"])


def _contender(row: dict[str, Any]) -> str:
    """The name of what was timed: the parameter `name`, where a benchmark has one."""
    return str((row.get("params") or {}).get("name", row["name"]))


def _limit(row: dict[str, Any]) -> str:
    """Share of the machine's limit that the row reaches: the larger of its bytes' and its FLOPs' share."""
    facts, seconds = row["extra_info"], _milliseconds(row) / 1e3
    shares = []
    if "bytes" in facts:
        shares.append(facts["bytes"] / seconds / 1e9 / facts["limits"]["copy_gb_per_s"])
    if "flops" in facts:
        shares.append(facts["flops"] / seconds / 1e9 / facts["limits"]["matmul_gflop_per_s"])
    return f"{max(shares):.1%}" if shares else "-"


def _table(rows: list[dict[str, Any]]) -> list[str]:
    rows = sorted(rows, key=_milliseconds)
    ours = next((_milliseconds(row) for row in rows if _contender(row) == "pointpeft"), None)
    if "clouds" in rows[0]["extra_info"]:
        return _table_of_models(rows, ours)
    lines = [
        "| contender | median ms | ratio to ours | bytes | GFLOP | of the limit |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        ratio = f"{_milliseconds(row) / ours:.2f}" if ours else "-"
        size = row["extra_info"].get("bytes")
        moved = f"{size:,}" if size else "-"
        flops = row["extra_info"].get("flops")
        work = f"{flops / 1e9:.3g}" if flops else "-"
        lines.append(f"| {_contender(row)} | {_milliseconds(row):.3f} | {ratio} | {moved} | {work} | {_limit(row)} |")
    return lines


def _table_of_models(rows: list[dict[str, Any]], ours: float | None) -> list[str]:
    lines = ["| contender | median ms | ratio to ours | clouds/s | kept for the backward | peak |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for row in rows:
        facts, time = row["extra_info"], _milliseconds(row)
        ratio = f"{time / ours:.2f}" if ours else "-"
        saved, peak = (f"{facts[k] / 2**20:.0f} MiB" if k in facts else "-" for k in ("saved_bytes", "peak_bytes"))
        rate = 1e3 * facts["clouds"] / time
        lines.append(f"| {_contender(row)} | {time:.0f} | {ratio} | {rate:.1f} | {saved} | {peak} |")
    return lines


def write(paths: list[Path], target: Path) -> None:
    """Writes the report of all `paths` to `target`, in one piece."""
    lines = ["# Results", "", "Written by `python -m benchmarks.report " + " ".join(p.name for p in paths) + "`.", ""]
    for path in paths:
        report = json.loads(path.read_text())
        machine = report["machine_info"]
        groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in report["benchmarks"]:
            groups[row["group"] or row["name"]].append(row)
        limits = {row["extra_info"]["device"]: row["extra_info"]["limits"] for row in report["benchmarks"]}
        lines += [f"## {path.stem}", ""]
        cpu = machine.get("cpu", {}).get("brand_raw", machine.get("processor", "unknown"))
        lines.append(f"{cpu}, {machine['threads']} threads, GPU {machine['gpu'] or 'none'}, torch {machine['torch']}.")
        for device, limit in limits.items():
            lines.append(
                f"Limits of {device} in the same run: copy {limit['copy_gb_per_s']:.1f} GB/s (read + written), "
                f"float32 matrix product {limit['matmul_gflop_per_s']:.0f} GFLOP/s."
            )
        lines.append("")
        method_lines, shown = tables_of_methods(groups)
        lines += method_lines
        for group, rows in groups.items():
            if group not in shown:
                lines += [f"### {group}", "", *_table(rows), ""]
        _plot(groups, path.with_suffix(".png"))
        lines += [f"![time against size](results/{path.with_suffix('.png').name})", ""]
    temporary = target.with_suffix(".tmp")
    temporary.write_text("\n".join(lines))
    os.replace(temporary, target)


def _plot(groups: dict[str, list[dict[str, Any]]], target: Path) -> None:
    """Median time against N, one panel an operation, one line a contender.

    An operation whose rows say `n`, being made to show growth, is drawn from these alone; of others the first size in
    the name of a group is N, and groups that name none are left out.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    growing = {group.split()[0] for group, rows in groups.items() if "n" in rows[0]["extra_info"]}
    for group, rows in groups.items():
        operation = group.split()[0]
        size = rows[0]["extra_info"].get("n") or _first_number(group, r"x(\d+)")
        if size is None or (operation in growing and "n" not in rows[0]["extra_info"]):
            continue
        for row in rows:
            panels[operation][_contender(row)].append((int(size), _milliseconds(row)))
    if not panels:
        return
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.6), squeeze=False)
    for axis, (operation, lines) in zip(axes[0], panels.items(), strict=True):
        for contender, points in lines.items():
            axis.loglog(*zip(*sorted(points), strict=True), marker="o", label=contender)
        axis.set(title=operation, xlabel="N", ylabel="median ms")
        axis.legend(fontsize=6)
    figure.tight_layout()
    temporary = target.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    os.replace(temporary, target)


def _first_number(text: str, pattern: str) -> str | None:
    found = re.search(pattern, text)
    return found.group(1) if found else None


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", nargs="+", type=Path, help="files of pytest --benchmark-json")
    parser.add_argument("--output", type=Path, default=FOLDER / "RESULTS.md")
    arguments = parser.parse_args()
    write(arguments.json, arguments.output)
    print(arguments.output)


if __name__ == "__main__":
    main()
