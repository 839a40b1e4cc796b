"""`pointpeft finetune`: from labelled clouds to an adapter and its accuracy."""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pointpeft.cli.table import print_rows
from pointpeft.runs.config import FinetuneConfig

__all__ = ["FinetuneConfig", "revise", "run"]


def revise(command: FinetuneConfig, parse: Callable[..., Any]) -> FinetuneConfig:
    """The command with the recipe or the file of options that it names as its defaults.

    Args:
        command: As parsed with the usual defaults.
        parse: Parses the command line again with `default` in their place.

    Raises:
        ValueError: Both a preset and a file, or one that is not there or cannot be read.
    """
    if command.resume is not None:
        from pointpeft.runs.resume import FINETUNE_FREE, revised

        return revised(command, parse, "finetune", FINETUNE_FREE)
    if command.preset is not None and command.config is not None:
        raise ValueError(f"give a preset or a config, got both: {command.preset} and {command.config}")
    if command.preset is not None:
        from pointpeft.recipes.presets import find_preset

        recipe = find_preset(command.preset)
    elif command.config is not None:
        from pointpeft.recipes.options_file import read_options
        from pointpeft.recipes.published_yaml import read_recipe

        options = read_options(command.config)
        if options is not None:
            return replace(parse(default=options), config=options.config)
        recipe = read_recipe(command.config)
    else:
        return command
    from pointpeft.recipes.presets import pairs

    command = parse(default=recipe.config())
    for note in recipe.notes:
        print(f"{recipe.name}: {note}", file=sys.stderr)
    if command.method != recipe.method:  # another method under the same recipe: it has options of its own
        backbone, method = pairs(recipe.backbone_options), pairs(recipe.method_options)
        command = replace(command, set=(*backbone, *command.set[len(backbone) + len(method) :]))
    if recipe.variant is not None:
        command = replace(command, data=_variant(command.data, recipe.variant))
    return command


def _variant(data: str, variant: str) -> str:
    """The data with the recipe's variant, where its data set has that one and none is named."""
    from pointpeft.data.registry import parse_source  # start-up time: it imports torch

    source = parse_source(data)
    if source.variant or variant not in source.data_set.variants:
        return data
    return f"{source.data_set.name}:{source.path}:{variant}"


def run(command: FinetuneConfig) -> int:
    """Adapts and prints the result."""
    from pointpeft.runs.finetune import finetune
    from pointpeft.tasks.base import create_task
    from pointpeft.training.processes import rank_and_world

    result = finetune(command)
    if rank_and_world()[0] > 0:
        return 0
    facts, folder = result.facts, result.folder
    task = create_task(facts["task"])
    numbers, probed = task.numbers, task.probed
    selection = facts["selection"]
    clouds = ", ".join(f"{count} {name}" for name, count in facts["clouds"].items())
    rows = {
        **{f"test {name}": accuracy(facts["test"], name) for name in numbers if name != "loss"},
        **({"same backbone, head only": accuracy(facts["linear probe"], numbers[0])} if probed else {}),
        f"validation {numbers[0].removeprefix('overall ')}": accuracy(facts["validation"], numbers[0]),
        "epoch selected": f"{selection['epoch']} of {facts['epochs']}: {selection['meaning']}",
        "seeds": ", ".join(map(str, facts["seeds"])),
        "trained parameters": f"{facts['trainable parameters']:,} of {facts['parameters']:,} "
        f"({facts['trainable parameters without head']:,} without the head)",
        "clouds": clouds,
        **({"note": "; ".join(facts["notes"])} if facts["notes"] else {}),
        "augmentation, vote": f"{facts['augmentation']}, {facts['vote']}",
        **({"steps per batch": 2} if facts["double step"] else {}),
        "speed, memory": f"{facts['clouds per second']} clouds/s in training, "
        f"{facts['peak memory MiB']} MiB ({facts['peak memory of']})",
        "run folder": folder,
    }
    if len(facts["seeds"]) > 1:
        rows["epoch selected"] = f"by seed: {', '.join(str(r['selection']['epoch']) for r in facts['runs'])}"
    print_rows(rows)
    if len(facts["seeds"]) == 1:
        print(f"\nNext: pointpeft predict {folder} FILE...   or open {folder / task.page}")
    return 0


def accuracy(part: dict[str, Any] | None, name: str) -> str:
    """An accuracy in percent, with its standard deviation where there are several seeds."""
    if part is None:
        return "-"
    text = f"{part[name]:.2%}"
    return f"{text} ± {part[f'{name} std']:.2%}" if f"{name} std" in part else text
