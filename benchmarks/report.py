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
    """Median time of one call: on CUDA that of a replayed graph, or of eager calls where no graph was taken."""
    facts = row["extra_info"]
    return 1e3 * facts.get("graph_seconds", facts.get("eager_seconds", row["stats"]["median"]))


def _how_timed(row: dict[str, Any]) -> list[str]:
    """The cells of a row on CUDA: its eager time, and how the other was taken."""
    facts = row["extra_info"]
    if "eager_seconds" not in facts:
        return ["-", "clock"]
    how = f"eager: {facts['graph_refused']}" if "graph_refused" in facts else f"graph of {facts.get('calls', 1)}"
    if "rotated_bytes" in facts:
        how += f", inputs of {facts['rotated_bytes'] / 2**20:.0f} MiB in turn"
    return [f"{1e3 * facts['eager_seconds']:.3f}", how.replace("|", "/")]


def _columns_of_cuda(rows: list[dict[str, Any]]) -> bool:
    """Whether a table says how its rows were timed: there is more than one way on CUDA."""
    return any("eager_seconds" in row["extra_info"] for row in rows)


def _contender(row: dict[str, Any]) -> str:
    """The name of what was timed: the parameter `name`, where a benchmark has one."""
    return str((row.get("params") or {}).get("name", row["name"]))


def _is_short(row: dict[str, Any]) -> bool:
    """Whether a row computes in a type of two bytes."""
    name = str((row.get("params") or {}).get("dtype", row["extra_info"].get("dtype", "")))
    return "16" in name


def _limit(row: dict[str, Any]) -> str:
    """Share of the machine's limit that the row reaches: the larger of its bytes' and its FLOPs' share."""
    facts, seconds = row["extra_info"], _milliseconds(row) / 1e3
    shares = []
    if "bytes" in facts:
        shares.append(facts["bytes"] / seconds / 1e9 / facts["limits"]["copy_gb_per_s"])
    if "flops" in facts:
        limits = facts["limits"]
        short = limits.get("matmul_bf16_gflop_per_s") if _is_short(row) else None
        shares.append(facts["flops"] / seconds / 1e9 / (short or limits["matmul_gflop_per_s"]))
    return f"{max(shares):.1%}" if shares else "-"


def _sentence_of_limits(device: str, limit: dict[str, float]) -> str:
    """What a device reached in the same run as its rows."""
    text = f"Limits of {device} in the same run: copy {limit['copy_gb_per_s']:.1f} GB/s (read + written), "
    text += f"PyTorch's float32 matrix product {limit['matmul_gflop_per_s']:.0f} GFLOP/s"
    if device == "cpu":
        return text + " (products on AMX pass it)."
    short = {name: limit.get(f"matmul_{name}_gflop_per_s") for name in ("tf32", "bf16")}
    return text + "".join(f", {name} {rate:.0f} GFLOP/s" for name, rate in short.items() if rate) + "."


def _table(rows: list[dict[str, Any]]) -> list[str]:
    rows = sorted(rows, key=_milliseconds)
    ours = next((_milliseconds(row) for row in rows if _contender(row) == "pointpeft"), None)
    if "clouds" in rows[0]["extra_info"]:
        return _table_of_models(rows, ours)
    on_cuda = _columns_of_cuda(rows)
    head, rule = (
        "| contender | median ms | ratio to ours | bytes | GFLOP | of the limit |",
        "|---|---:|---:|---:|---:|---:|",
    )
    lines = [head + " eager ms | timed as |" * on_cuda, rule + "---:|---|" * on_cuda]
    for row in rows:
        ratio = f"{_milliseconds(row) / ours:.2f}" if ours else "-"
        size = row["extra_info"].get("bytes")
        moved = f"{size:,}" if size else "-"
        flops = row["extra_info"].get("flops")
        work = f"{flops / 1e9:.3g}" if flops else "-"
        cells = [_contender(row), f"{_milliseconds(row):.3f}", ratio, moved, work, _limit(row)]
        lines.append("| " + " | ".join(cells + _how_timed(row) * on_cuda) + " |")
    return lines


def _table_of_models(rows: list[dict[str, Any]], ours: float | None) -> list[str]:
    on_cuda = _columns_of_cuda(rows)
    lines = ["| contender | median ms | ratio to ours | clouds/s | kept for the backward | peak |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    lines = [
        line + addition * on_cuda for line, addition in zip(lines, (" eager ms | timed as |", "---:|---|"), strict=True)
    ]
    for row in rows:
        facts, time = row["extra_info"], _milliseconds(row)
        ratio = f"{time / ours:.2f}" if ours else "-"
        saved, peak = (f"{facts[k] / 2**20:.0f} MiB" if k in facts else "-" for k in ("saved_bytes", "peak_bytes"))
        rate = 1e3 * facts["clouds"] / time
        cells = [_contender(row), f"{time:.3g}" if on_cuda else f"{time:.0f}", ratio, f"{rate:.1f}", saved, peak]
        lines.append("| " + " | ".join(cells + _how_timed(row) * on_cuda) + " |")
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
        lines += [_sentence_of_limits(device, limit) for device, limit in limits.items()]
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
