"""`pointpeft pretrain`: a backbone from clouds without labels."""

from collections.abc import Callable
from typing import Any

from pointpeft.cli.table import print_rows
from pointpeft.runs.config import PretrainConfig

__all__ = ["PretrainConfig", "revise", "run"]


def revise(command: PretrainConfig, parse: Callable[..., Any]) -> PretrainConfig:
    """The command, with `--resume` over the options that its run was begun with.

    Raises:
        ValueError: No such run, or an option that a resumed run cannot take up.
    """
    if command.resume is None:
        return command
    from pointpeft.runs.resume import PRETRAIN_FREE, revised

    return revised(command, parse, "pretrain", PRETRAIN_FREE)


def run(command: PretrainConfig) -> int:
    """Pre-trains and prints where the weights are."""
    from pointpeft.runs.pretrain import pretrain
    from pointpeft.training.processes import rank_and_world

    result = pretrain(command)
    if rank_and_world()[0] > 0:
        return 0
    names = ("clouds", "epochs", "training_minutes", "clouds_per_second", "first_loss", "last_loss", "weights")
    print_rows({name: getattr(result, name) for name in names})
    return 0
