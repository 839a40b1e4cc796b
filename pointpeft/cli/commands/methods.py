"""`pointpeft methods`: every method and what it trains, as a Markdown table."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SIDE_BY_SIDE = 3  # methods in a row of the short table


@dataclass(frozen=True)
class Methods:
    """Print all methods with the number of parameters that each trains, as a Markdown table.

    A method whose optional package is not installed is listed without numbers.
    """

    backbone: str = "point_mae"
    """Architecture to count at: point_mae is the published size."""
    num_classes: int = 15
    """Classes of the head; 15 are those of ScanObjectNN."""
    short: bool = False
    """Three methods a row, names and numbers alone."""
    json: bool = False
    """Print one JSON list instead of a table."""


def collect(backbone: str, num_classes: int) -> list[dict[str, Any]]:
    """One dict per method; nothing is allocated, since counting needs shapes alone."""
    from pointpeft import create_model
    from pointpeft.methods import method_class, method_names
    from pointpeft.methods.selective.linear import Linear

    create_model(backbone, Linear(), num_classes, device="meta")  # a wrong backbone or number of classes is an error
    rows = []
    for name in method_names():
        cls = method_class(name)
        row: dict[str, Any] = {
            "method": name,
            "what": (cls.__doc__ or "").split("\n")[0].rstrip("."),
            "merges": cls.mergeable,
        }
        try:
            model = create_model(backbone, name, num_classes, device="meta")
        except ImportError as error:
            rows.append(row | {"missing": str(error)})
            continue
        except ValueError as error:
            rows.append(row | {"refused": str(error)})
            continue
        rows.append(
            row
            | {
                "trained": model.trainable_parameters(),
                "trained_without_head": model.trainable_parameters(head=False),
                "parameters": sum(p.numel() for p in model.parameters()),
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A row per method."""
    lines = ["| method | trained | without head | of all | merges | |", "|---|---:|---:|---:|:-:|---|"]
    for row in rows:
        numbers = ("-", "-", "-")
        if "trained" in row:
            share = f"{100 * row['trained'] / row['parameters']:.1f} %"
            numbers = (f"{row['trained']:,}", f"{row['trained_without_head']:,}", share)
        note = row.get("missing") or row.get("refused") or row["what"]
        lines.append(f"| `{row['method']}` | {' | '.join(numbers)} | {'yes' if row['merges'] else ''} | {note} |")
    return "\n".join(lines)


def short_table(rows: Sequence[dict[str, Any]], side_by_side: int = SIDE_BY_SIDE) -> str:
    """Names and trained parameters with the head, sorted by them, from top to bottom and left to right."""
    counted = sorted((row for row in rows if "trained" in row), key=lambda row: (row["trained"], row["method"]))
    cells = [f"`{row['method']}`{' *' if row['merges'] else ''} | {row['trained']:,}" for row in counted]
    height = -(-len(cells) // side_by_side)
    cells += [" | "] * (height * side_by_side - len(cells))
    lines = ["| method | trained " * side_by_side + "|", "|---|---:" * side_by_side + "|"]
    lines += ["| " + " | ".join(cells[i::height]) + " |" for i in range(height)]
    return "\n".join(lines)


def run(command: Methods) -> int:
    """Prints the table."""
    rows = collect(command.backbone, command.num_classes)
    if command.json:
        print(json.dumps(rows, indent=2))
    elif command.short:
        print(short_table(rows))
    else:
        print(table(rows))
    return 0
