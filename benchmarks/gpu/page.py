"""Makes a page of the results of `python -m benchmarks.gpu`: `python -m benchmarks.gpu.page results.json page.md`."""

import argparse
import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.gpu import files

SHOWN = 15  # kernels of a profile
MARKS = {"passed": "passed", "failed": "**failed**", "timed out": "**timed out**", "not begun": "**not begun**"}
Results = dict[str, Any]


def table(head: list[str], rows: list[list[Any]]) -> list[str]:
    """A table of Markdown; the first column is text, the others are numbers."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return [*lines, *("| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |" for row in rows)]


def milliseconds(seconds: float | None) -> str:
    """Three digits, or a dash."""
    return "-" if seconds is None else f"{1e3 * seconds:.4g}"


def time_of(facts: Results) -> float | None:
    """Seconds of what was timed: a graph's, else those of eager calls."""
    return facts.get("graph_seconds", facts.get("eager_seconds"))


def share(row: Results, seconds: float | None, limits: Results) -> str:
    """How much of the device's bandwidth or products a time reaches, whichever is more."""
    if not seconds or not limits:
        return "-"
    products = limits.get("matmul_bf16_gflop_per_s" if "16" in row["dtype"] else "matmul_gflop_per_s")
    shares = [row["bytes"] / seconds / 1e9 / limits["copy_gb_per_s"]]
    if products:
        shares.append(row["flops"] / seconds / 1e9 / products)
    return f"{max(shares):.1%}"


def of_machine(result: Results, limits: Results) -> list[str]:
    lines = [f"{result.get('gpu') or 'no GPU'}, torch {result['torch']}, {result['nvcc']}.", ""]
    lines += [f"* {name}: {value:,.0f}" for name, value in limits.items()]
    peers = [f"{name} {version}" for name, version in result["peers"].items() if version]
    return [*lines, f"* peers: {', '.join(peers) or 'none is installed'}"]


def of_tests(result: Results, limits: Results) -> list[str]:
    lines = [", ".join(f"{count} {outcome}" for outcome, count in result["outcomes"].items()) + ".", ""]
    return lines + [f"* `{line['test']}`: {last_line(line.get('why', ''))}" for line in result["failed"]]


def of_agreement(result: Results, limits: Results) -> list[str]:
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in result["outcomes"].items())
    lines = [f"{result['cases']} cases: {outcomes}.", ""]
    return lines + [f"* case {failure.get('case')}: {last_line(failure['why'])}" for failure in result["failures"]]


def of_sanitizer(result: Results, limits: Results) -> list[str]:
    if result.get("refused"):
        return [result["refused"]]
    left = result.get("left_out", [])
    lines = [
        f"{len(result['paths'])} paths, {len(left)} left out, errors: {result.get('errors', 'not asked for')}.",
        "",
    ]
    lines += [f"* left out: {name}" for name in left]
    return lines + [f"* {each['path']}: {each['report']}" for each in result.get("reports", [])]


def of_operations(rows: list[Results], limits: Results) -> list[str]:
    groups: dict[str, list[Results]] = defaultdict(list)
    for row in rows:
        groups[row["group"]].append(row)
    lines = report._overview(groups)
    for group, found in groups.items():
        lines += [f"### {group}", "", *report._table(found), ""]
    return lines


def of_kernels(result: Results, limits: Results) -> list[str]:
    rows = []
    for row in result["rows"]:
        times = {name: time_of(facts) for name, facts in row["contenders"].items()}
        ours, others = times.pop("pointpeft"), [t for t in times.values() if t]
        cells = [row["name"], milliseconds(ours), *map(milliseconds, times.values())]
        cells.append(f"{min(others) / ours:.2f}" if ours and others else "-")
        rows.append([*cells, f"{row['bytes']:,}", f"{row['flops'] / 1e9:.3g}", share(row, ours, limits)])
    head = ["kernel", "ours, ms", "eager, ms", "compile, ms", "fastest other / ours", "bytes", "GFLOP", "of the limit"]
    lines = table(head, rows)
    for row in result["rows"]:
        for name, facts in row["contenders"].items():
            if "failed" in facts or "graph_refused" in facts:
                lines.append(f"\n{row['name']}, {name}: {facts.get('failed') or 'no graph: ' + facts['graph_refused']}")
    return lines


def of_models(result: Results, limits: Results) -> list[str]:
    rows = []
    for row in result["rows"]:
        peak = f"{row['peak_bytes'] / 2**20:.0f}" if "peak_bytes" in row else "-"
        remark = row.get("failed") or row.get("refused") or row.get("left_out") or ""
        waits = str(len(row["waits"])) if "waits" in row else "-"
        cells = [row["work"], row["precision"], row["way"], row["batch"], milliseconds(row.get("seconds"))]
        rows.append([*cells, row.get("clouds_per_s", "-"), peak, waits, remark])
    head = ["work", "precision", "way", "batch", "ms", "clouds/s", "peak, MiB", "waits", "remark"]
    lines = [*table(head, rows), ""]
    for precision, facts in result.get("largest_batch", {}).items():
        if "failed" in facts:
            lines.append(f"* Largest batch of a training step in {precision}: {facts['failed']}")
            continue
        beyond = "a larger one did not fit" if facts["larger_refused"] else "no larger one was tried"
        lines.append(f"* Largest batch of a training step in {precision}: {facts['batch']}; {beyond}.")
    for precision, facts in result.get("agreement", {}).items():
        distances = f"logits {facts['logits']:.2g}, gradients {facts['gradients']:.2g}"
        lines.append(f"* Relative distance from the CPU's float32 in {precision}: {distances}.")
    return lines


def of_profile(result: list[Results], limits: Results) -> list[str]:
    lines = []
    for each in result:
        lines += [f"A step in {each['precision']}: {each['kernels_a_step']:.0f} kernels, {each['kernels_us']} us.", ""]
        shown = each["kernels"] or each["host"]
        lines += [
            *table(
                ["kernel", "calls", "us a step"], [[f"`{e['name'][:90]}`", e["calls"], e["us"]] for e in shown[:SHOWN]]
            ),
            "",
        ]
    return lines


def last_line(text: str) -> str:
    """The end of a message, which names the fault."""
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no message"


SECTIONS: dict[str, Callable[[Any, Results], list[str]]] = {
    "machine": of_machine,
    "tests": of_tests,
    "agreement": of_agreement,
    "paths": of_sanitizer,
    "memcheck": of_sanitizer,
    "racecheck": of_sanitizer,
    "synccheck": of_sanitizer,
    "operations": of_operations,
    "kernels": of_kernels,
    "models": of_models,
    "profile": of_profile,
}


def lines_of(results: Results) -> list[str]:
    """The page: a line a step, then a section of each that gave something."""
    steps = results["steps"]
    limits = (steps.get("machine", {}).get("result") or {}).get("limits", {})
    title = "# A rehearsal on the CPU" if results["rehearsal"] else "# Results on a GPU"
    lines = [title, "", f"`python -m benchmarks.gpu`, {results['date']}; exit code {results.get('exit_code')}.", ""]
    rows = []
    for name, state in steps.items():
        remark = state.get("reason") or state.get("unreadable")
        if remark is None:
            remark = last_line(state["output"]) if state.get("output") else ""
        rows.append([name, MARKS.get(state["status"], state["status"]), state["seconds"], remark[:200]])
    lines += [*table(["step", "outcome", "seconds", "remark"], rows), ""]
    for name, make in SECTIONS.items():
        result = steps.get(name, {}).get("result")
        if result:
            lines += [f"## {name}", "", *make(result, limits), ""]
    return lines


def write(source: Path, target: Path) -> None:
    """Writes the page of a file of results, in one piece."""
    temporary = target.with_name(f"{target.name}.tmp")
    temporary.write_text("\n".join(lines_of(files.read(source))))
    os.replace(temporary, target)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("page", type=Path)
    given = parser.parse_args()
    write(given.results, given.page)


if __name__ == "__main__":
    main()
