"""Two columns of text."""

from collections.abc import Mapping
from typing import Any


def print_rows(rows: Mapping[str, Any]) -> None:
    """Prints one line per entry, values aligned."""
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:{width}}  {value}")
