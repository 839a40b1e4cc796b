"""`pointpeft presets`: the published recipes that `pointpeft finetune --preset` knows, as a Markdown table."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from pointpeft.recipes.presets import Preset

COLUMNS = ("preset", "backbone", "lr", "epochs", "warm-up", "batch", "points", "augmentation", "options")


@dataclass(frozen=True)
class Presets:
    """Print the published recipes that `pointpeft finetune --preset NAME` knows, and how they differ from the published
    procedure.

    All use AdamW with a linear warm-up and a cosine; weight decay 0.05 and a gradient norm of at most 10, if the
    table says nothing else.
    """

    name: Annotated[str | None, Positional, arg(metavar="NAME")] = None
    """Print this one alone, with the file that it is read from."""
    json: bool = False
    """Print one JSON list instead of a table."""


def table(presets: Sequence["Preset"]) -> str:
    """A row per preset."""
    from pointpeft.recipes.presets import pairs  # imports the methods, for which `--help` need not wait

    lines = [f"| {' | '.join(COLUMNS)} |", "|---|---|" + "---:|" * 5 + "---|---|"]
    for preset in presets:
        options = [*pairs(preset.backbone_options), *pairs(preset.method_options)]
        cells = (
            f"`{preset.name}`",
            preset.backbone,
            f"{preset.lr:g}",
            preset.epochs,
            preset.warmup_epochs,
            preset.batch_size,
            preset.num_points,
            preset.augment,
            " ".join(options),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def run(command: Presets) -> int:
    """Prints the table, or one preset."""
    from pointpeft.recipes.presets import DIFFERENCES, find_preset, presets

    chosen = list(presets().values()) if command.name is None else [find_preset(command.name)]
    if command.json:
        print(json.dumps([asdict(preset) | {"notes": preset.notes} for preset in chosen], indent=2))
        return 0
    print(table(chosen))
    if command.name is not None:
        print(f"\nRead from {chosen[0].published}.")
    print("\nAll presets leave the published procedure so:")
    print("\n".join(f"- {difference}" for difference in DIFFERENCES))
    presets_of: dict[str, list[str]] = {}
    for preset in chosen:
        for note in preset.notes:
            names = presets_of.setdefault(note, [])
            of = preset.name if note in preset.differences else preset.method
            if of not in names:
                names.append(of)
    if presets_of:
        print("\nAnd some of them:")
        print("\n".join(f"- {note} ({', '.join(names)})" for note, names in presets_of.items()))
    return 0
