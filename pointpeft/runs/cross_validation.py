"""How long to adapt, chosen on training clouds alone: every cloud is judged by a model that has not seen it."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pointpeft.files import write_json
from pointpeft.model import PointModel
from pointpeft.tasks.batches import Clouds
from pointpeft.tasks.inference import voted_logits
from pointpeft.training.divergence import require_finite_logits
from pointpeft.training.loop import State
from pointpeft.training.run_folder import RunFolder, read_json
from pointpeft.training.seeds import derive_seed

FOLDS = 2
FILE = "cross_validation.json"
Look = Callable[[Any, State], dict[str, float]]


class CrossValidated(NamedTuple):
    """What the held-out clouds say of every epoch, from 0, the model before any step.

    Attributes:
        epoch: The epoch that is kept.
        accuracy: Of all clouds, by epoch.
        loss: Their mean cross-entropy, by epoch.
        seconds: What it took.
    """

    epoch: int
    accuracy: list[float]
    loss: list[float]
    seconds: float


def folds_of(labels: Tensor, seed: int, count: int = FOLDS) -> list[Tensor]:
    """Deals the clouds of every class, in random order, to the folds in turn.

    Args:
        labels: Class of every cloud. [M]
        seed: Of the order.
        count: How many folds.

    Returns:
        Positions of each fold, int64, ascending, disjoint, together all of 0 .. M-1.

    Raises:
        ValueError: A class has fewer than two clouds, so that a fold would hold out all of it.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(derive_seed(seed, "folds")))
    fold, dealt = torch.empty(len(labels), dtype=torch.int64), 0
    for label in labels.unique():
        members = order[labels[order] == label]
        if len(members) < 2:
            raise ValueError(
                f"select cv needs at least 2 training clouds of every class, got {len(members)} of class {int(label)}; "
                "give more, or --select last"
            )
        fold[members] = (torch.arange(len(members)) + dealt) % count  # classes begin in turn: folds of one size
        dealt += len(members)
    return [(fold == number).nonzero()[:, 0] for number in range(count)]


def best_epoch(right: Tensor, losses: Tensor) -> int:
    """The epoch that is kept: the one of the smallest loss, where it beats epoch 0 by more than chance.

    An epoch wins some clouds over epoch 0 and loses others. Were each as likely, the difference would have a standard
    deviation of √(won + lost): an epoch counts as better from there on.

    Args:
        right: Whether each cloud is classified correctly after each epoch, from 0. bool, [E + 1, M]
        losses: Mean cross-entropy after each epoch. [E + 1]

    Returns:
        Counted from 1; 0 where no epoch is better than none.
    """
    if len(losses) < 2:
        return 0
    epoch = int(losses[1:].argmin()) + 1
    won, lost = int((right[epoch] & ~right[0]).sum()), int((right[0] & ~right[epoch]).sum())
    return epoch if won - lost > (won + lost) ** 0.5 else 0


def cross_validate(
    training: Clouds, adapt: Callable[[Clouds, RunFolder, Look], Any], folder: RunFolder, batch_size: int, seed: int
) -> CrossValidated:
    """Adapts once for each fold, to the clouds of all others, and looks at the fold after every epoch.

    The outcome is written into the run folder, and read from there when a run is resumed.

    Args:
        training: All labelled clouds.
        adapt: Adapts a fresh model to clouds and calls `look` before the first step and after every epoch. Its folder
            is written by no process.
        folder: The run's.
        batch_size: Clouds per step of evaluation.
        seed: Of the folds.
    """
    path = folder.path / FILE
    if path.is_file():
        return CrossValidated(**read_json(path, ""))
    started = time.perf_counter()
    right, losses = [], []
    for number, held in enumerate(folds_of(training.labels, seed)):
        rest, asked = training.subset(_others(len(training), held)), training.subset(held)
        looks: list[tuple[Tensor, Tensor]] = []

        def look(model: PointModel, state: State, asked: Clouds = asked, looks: Any = looks) -> dict[str, float]:
            logits = require_finite_logits(voted_logits(model, asked, batch_size))
            hits, loss = logits.argmax(1) == asked.labels, F.cross_entropy(logits, asked.labels, reduction="none")
            looks.append((hits, loss))
            return {"held-out accuracy": float(hits.float().mean()), "held-out loss": float(loss.mean())}

        adapt(rest, RunFolder(folder.path / f"fold-{number}", main=False), look)
        right.append(torch.stack([one for one, _ in looks]))
        losses.append(torch.stack([one for _, one in looks]))
    whole, loss = torch.cat(right, 1), torch.cat(losses, 1).mean(1)
    seconds = round(time.perf_counter() - started, 1)
    found = CrossValidated(best_epoch(whole, loss), _rounded(whole.float().mean(1)), _rounded(loss), seconds)
    if folder.main:
        write_json(path, found._asdict())
    return found


def _others(count: int, held: Tensor) -> Tensor:
    rest = torch.ones(count, dtype=torch.bool)
    rest[held] = False
    return rest.nonzero()[:, 0]


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]
