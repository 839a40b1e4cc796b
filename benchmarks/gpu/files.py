"""JSON that is written whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any


def write(path: Path, content: Any) -> None:
    """Writes beside the name and renames: who reads it meanwhile finds the last whole content."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1, default=str) + "\n")
    os.replace(temporary, path)


def read(path: Path) -> Any:
    """The content, or None where a step has written nothing yet; of a .jsonl file the list of its lines."""
    if not path.is_file():
        return None
    text = path.read_text()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]
    return json.loads(text)
