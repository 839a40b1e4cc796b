"""Names in files that an earlier version wrote, which were English phrases, as the names of today."""

from typing import Any

_METADATA = {
    "clouds normalized": "clouds_normalized",
    "linear probe": "linear_probe",
    "parts of": "parts_of",
    "up axis": "up_axis",
    "vote": "votes",
}
_SUMMARIES = ("test", "validation", "linear_probe")


def snake_case(name: str) -> str:
    """`peak memory MiB` as `peak_memory_mib`."""
    return name.replace(" ", "_").lower()


def upgraded_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """The metadata of an adapter, or the entries of a result, with the names of today; others stay as they are."""
    entries = {_METADATA.get(name, name): value for name, value in metadata.items()}
    for split in _SUMMARIES:
        if isinstance(entries.get(split), dict):
            entries[split] = {snake_case(name): value for name, value in entries[split].items()}
    selection = entries.get("selection")
    if isinstance(selection, dict) and "test set used to select" in selection:
        renamed = {name: value for name, value in selection.items() if name != "test set used to select"}
        entries["selection"] = renamed | {"test_set_used": selection["test set used to select"]}
    return entries


def upgraded_result(entries: dict[str, Any]) -> dict[str, Any]:
    """The entries of a run's `result.json` with the names of today."""
    return upgraded_metadata({snake_case(name): value for name, value in entries.items()})
