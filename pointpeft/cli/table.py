"""Two columns of text."""

from collections.abc import Mapping
from typing import Any


def print_rows(rows: Mapping[str, Any]) -> None:
    """Prints one line per entry, values aligned; a name such as clouds_now is printed in words."""
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name.replace('_', ' '):{width}}  {value}")
