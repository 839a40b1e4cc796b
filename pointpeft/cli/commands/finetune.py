"""`pointpeft finetune`: from labelled clouds to an adapter and its accuracy."""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pointpeft.cli.table import print_rows
from pointpeft.runs.config import FinetuneConfig

if TYPE_CHECKING:
    from pointpeft.runs.result import Summary

__all__ = ["FinetuneConfig", "revise", "run"]


def revise(command: FinetuneConfig, parse: Callable[..., Any]) -> FinetuneConfig:
    """Replaces the command's defaults by the recipe or the file of options that it names.

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
    """Adds the recipe's variant to the data, where its data set has that variant and none is named."""
    from pointpeft.data.registry import parse_source  # start-up time: it imports torch

    source = parse_source(data)
    if source.variant or variant not in source.data_set.variants:
        return data
    return f"{source.data_set.name}:{source.path}:{variant}"


def run(command: FinetuneConfig) -> int:
    """Adapts and prints the result."""
    from pointpeft.runs.baselines import sentences
    from pointpeft.runs.finetune import finetune
    from pointpeft.tasks.base import create_task, heading
    from pointpeft.training.processes import rank_and_world

    result = finetune(command)
    if rank_and_world()[0] > 0:
        return 0
    task = create_task(result.task)
    numbers, selection = task.numbers, result.selection
    clouds = ", ".join(f"{count} {name}" for name, count in result.clouds.items())
    rows = {
        **{f"test {heading(name)}": accuracy(result.test, name) for name in numbers if name != "loss"},
        **({"same backbone, head only": accuracy(result.linear_probe, numbers[0])} if task.probed else {}),
        **({"takes seconds": "; ".join(sentences(result.baselines))} if result.baselines else {}),
        f"validation {heading(numbers[0]).removeprefix('overall ')}": accuracy(result.validation, numbers[0]),
        "epoch selected": f"{selection.epoch} of {result.epochs}: {selection.meaning}",
        **({"leave-one-out accuracy": accuracy(result.leave_one_out, numbers[0])} if result.leave_one_out else {}),
        **({"held-out accuracy": _course(result.cross_validation, selection.epoch)} if result.cross_validation else {}),
        "seeds": ", ".join(map(str, result.seeds)),
        "trained parameters": f"{result.trainable_parameters:,} of {result.parameters:,} "
        f"({result.trainable_parameters_without_head:,} without the head)",
        "clouds": clouds,
        **({"note": "; ".join(result.notes)} if result.notes else {}),
        "augmentation, votes": f"{result.augmentation}, {result.votes}",
        **({"steps per batch": 2} if result.double_step else {}),
        "speed, memory": f"{result.clouds_per_second} clouds/s in training, "
        f"{result.peak_memory_mib} MiB ({result.peak_memory_of})",
        "run folder": result.folder,
    }
    if result.runs:
        rows["epoch selected"] = f"by seed: {', '.join(str(run.selection.epoch) for run in result.runs)}"
    if selection.epoch == 0:
        rows["epoch selected"] = selection.meaning
    print_rows(rows)
    if result.verdict:
        print(f"\n{result.verdict}")
    if not result.runs:
        print(f"\nNext: pointpeft predict {result.folder} FILE...   or open {result.folder / task.page}")
    return 0


def _course(validated: dict[str, list[float]], epoch: int) -> str:
    """What cross-validation said of the start, of the epoch that was kept and of the last one."""
    by_epoch = validated["accuracy"]
    kept = f", {by_epoch[epoch]:.2%} after epoch {epoch}" if epoch else ""
    return f"{by_epoch[0]:.2%} before training{kept}, {by_epoch[-1]:.2%} at the end"


def accuracy(summary: "Summary | None", name: str) -> str:
    """An accuracy in percent, with its standard deviation where there are several seeds."""
    if summary is None:
        return "-"
    text = f"{summary[name]:.2%}"
    return f"{text} ± {summary[f'{name}_std']:.2%}" if f"{name}_std" in summary else text
