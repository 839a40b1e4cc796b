"""Writes benchmarks/RESULTS.md, and a plot of time against N for each operation, from pytest-benchmark's JSON.

python -m pytest benchmarks --benchmark-only --benchmark-json=benchmarks/results/cpu.json
python -m benchmarks.report benchmarks/results/cpu.json
"""

import argparse
import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks import growth
from benchmarks.report_methods import tables_of_methods

FOLDER = Path(__file__).resolve().parent


def _milliseconds(row: dict[str, Any]) -> float:
    """Median time of one call."""
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


def _overview(groups: dict[str, list[dict[str, Any]]]) -> list[str]:
    """One line a group: ours, the fastest of the others, and the plain PyTorch reference, with their ratios to ours."""
    lines = []
    for group, rows in groups.items():
        times = {_contender(row): _milliseconds(row) for row in rows}
        ours, reference = times.get("pointpeft"), times.get("reference")
        if ours is None:
            continue
        others = {
            name: time for name, time in times.items() if not name.startswith("pointpeft") and name != "reference"
        }
        cells = ["-", "-"]
        if others:
            name = min(others, key=others.__getitem__)
            cells = [f"{others[name]:.3f} ({name})", f"{others[name] / ours:.2f}"]
        cells += [f"{reference:.3f}", f"{reference / ours:.2f}"] if reference else ["-", "-"]
        lines.append(f"| {group} | {ours:.3f} | {' | '.join(cells)} |")
    head = ["### Overview", "", "| work | ours, ms | fastest other | ratio | reference | ratio |"]
    return [*head, "|---|---:|---|---:|---:|---:|", *lines, ""] if lines else []


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
                f"PyTorch's float32 matrix product {limit['matmul_gflop_per_s']:.0f} GFLOP/s (products on AMX pass it)."
            )
        grown = [
            growth.Point(row["group"].split()[0], _contender(row), row["extra_info"]["n"], _milliseconds(row))
            for row in report["benchmarks"]
            if "n" in row["extra_info"]
        ]
        method_lines, shown = tables_of_methods(groups)
        groups = {group: rows for group, rows in groups.items() if group not in shown}
        lines += ["", *_overview(groups), *growth.table(grown), *method_lines]
        for group, rows in groups.items():
            lines += [f"### {group}", "", *_table(rows), ""]
        if growth.plot(grown, path.with_suffix(".png")):
            lines += [f"![time against size](results/{path.with_suffix('.png').name})", ""]
    temporary = target.with_suffix(".tmp")
    temporary.write_text("\n".join(lines))
    os.replace(temporary, target)


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
