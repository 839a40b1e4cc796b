"""Which epoch of a run is kept."""

from collections.abc import Callable
from typing import Any

from torch import nn

from pointpeft.training.loop import State, restore_trained, trained_state

# Rule -> the part of the data it looks at after every epoch, and what a result says about it.
LOOKS_AT = {"val-best": "val", "test-best": "test", "last": None, "cv": None}
MEANING = {
    "val-best": "best epoch on clouds held out of the training set; the test set was looked at once, at the end",
    "cv": "as many epochs on all training clouds as were best on halves held out in turn, none where none was better "
    "by more than chance; the test set was looked at once, at the end",
    "last": "last epoch; the test set was looked at once, at the end",
    "leave-one-out": "no epochs: solved on all training clouds, width and ridge chosen by leaving out one at a time; "
    "the test set was looked at once, at the end",
    "test-best": "best epoch ON THE TEST SET, as published numbers do: optimistic, compare with like alone",
}


class Selector:
    """Keeps the weights of the best epoch by `score`: accuracy or mean IoU, then the loss; ties go to the earlier one.

    Args:
        rule: val-best, cv, last or test-best; that of cv is chosen beforehand, and trained for.
        measure: Metrics of the current weights on a part ("val" or "test").
    """

    def __init__(self, rule: str, measure: Callable[[str], Any]) -> None:
        if rule not in LOOKS_AT:
            raise ValueError(f"select must be one of {', '.join(LOOKS_AT)}, got {rule!r}")
        self.part = LOOKS_AT[rule]
        self.measure = measure

    def after_epoch(self, model: nn.Module, state: State) -> dict[str, float]:
        """Measures, keeps the weights in `state.best` if they are the best so far, and returns numbers for the log."""
        if self.part is None:
            return {}
        metrics = self.measure(self.part)
        if not state.best or metrics.score > state.best["score"]:
            state.best = {"epoch": state.epoch, "score": metrics.score, "model": trained_state(model)}
        return {f"{self.part} {name}": value for name, value in metrics.logged().items()}

    def restore(self, model: nn.Module, state: State) -> int:
        """Puts the kept weights into the model and returns their epoch, counted from 1."""
        if self.part is None or not state.best:
            return state.epoch
        restore_trained(model, state.best["model"])
        return state.best["epoch"]
