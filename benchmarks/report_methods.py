"""Tables of all methods beside full fine-tuning, from the rows of bench_training.py."""

from collections import defaultdict
from typing import Any

LEAST = 4  # methods that make a table of their own worth while


def tables_of_methods(groups: dict[str, list[dict[str, Any]]]) -> tuple[list[str], set[str]]:
    """Lines of one table per kind of work, batch and dtype, and the groups that need no table of their own beside it.

    Args:
        groups: Rows of pytest-benchmark by group; those of methods say `method`, `dtype` and `clouds`.
    """
    tables: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    alone: dict[str, set[str]] = defaultdict(set)
    for group, rows in groups.items():
        for row in rows:
            facts = row["extra_info"]
            if "method" in facts and row["params"]["name"] == "pointpeft":
                title = group.replace(f" {facts['method']} ", " of every method, ", 1)
                tables[title][facts["method"]] = row
                if len(rows) == 1:
                    alone[title].add(group)
    lines, shown = [], set()
    for title, rows_by_method in tables.items():
        if len(rows_by_method) >= LEAST:
            lines += [f"### {title}", "", *_table(rows_by_method), ""]
            shown |= alone[title]
    return lines, shown


def _table(rows: dict[str, dict[str, Any]]) -> list[str]:
    full = rows.get("full")
    lines = ["| method | clouds/s | time / full | kept for the backward | / full | peak | / full |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    for method, row in sorted(rows.items(), key=lambda item: _seconds(item[1])):
        cells = [f"{row['extra_info']['clouds'] / _seconds(row):.2f}", _ratio(_seconds(row), full and _seconds(full))]
        for fact in ("saved_bytes", "peak_bytes"):
            size = row["extra_info"].get(fact)
            cells.append("-" if size is None else f"{size / 2**20:.0f} MiB")
            cells.append(_ratio(size, full and full["extra_info"].get(fact)))
        lines.append(f"| `{method}` | " + " | ".join(cells) + " |")
    return lines


def _seconds(row: dict[str, Any]) -> float:
    facts = row["extra_info"]
    return float(facts.get("graph_seconds", facts.get("eager_seconds", row["stats"]["median"])))


def _ratio(value: float | None, full: float | None) -> str:
    return f"{value / full:.2f}" if value and full else "-"
