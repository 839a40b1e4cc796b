"""Formats of `checkpoint.pt`: how an older one becomes one of today."""

from typing import Any

# Format 1, whose checkpoints have no number, counted the epochs of log and selection from 0; format 2 from 1.
FORMAT = 2


def upgraded(saved: dict[str, Any], what: str) -> dict[str, Any]:
    """A checkpoint in today's format, without its number.

    Args:
        saved: What the file holds; not changed.
        what: The checkpoint, as messages name it.

    Raises:
        ValueError: It is of a format that is not known here, or its number of epochs and its log disagree.
    """
    form = saved.get("format", 1)
    state = {name: value for name, value in saved.items() if name != "format"}
    if form not in (1, FORMAT):
        raise ValueError(
            f"{what} is of format {form!r}, formats up to {FORMAT} are known: resume with the version that wrote it"
        )
    if not state["history"]:
        return state
    done, last = state["epoch"], state["history"][-1]["epoch"]
    # A log of format 1 may count from 1, too: the counting changed before checkpoints had a number.
    if form == 1 and last == done - 1:
        state["history"] = [row | {"epoch": int(row["epoch"]) + 1} for row in state["history"]]
        if state["best"]:
            state["best"] = state["best"] | {"epoch": state["best"]["epoch"] + 1}
    elif last != done:
        raise ValueError(f"{what} has {done} epochs, but its log ends with epoch {last}: start the run again")
    return state
