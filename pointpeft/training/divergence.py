"""Detects divergence before it reaches a checkpoint, and ends the run with an error that suggests remedies."""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from pointpeft.training.processes import largest

Answer = TypeVar("Answer")


class NotFiniteError(ValueError):
    """A model whose numbers are not finite."""


def not_finite(content: Any, name: str = "") -> str | None:
    """The name of a tensor that is not finite in nested mappings and lists, or None where all are finite."""
    if isinstance(content, Tensor):
        return None if bool(content.isfinite().all()) else name
    if isinstance(content, Mapping):
        pairs = [(f"{name}.{key}" if name else str(key), value) for key, value in content.items()]
    elif isinstance(content, (list, tuple)):
        pairs = [(f"{name}.{number}", value) for number, value in enumerate(content)]
    else:
        return None
    return next((culprit for key, value in pairs if (culprit := not_finite(value, key)) is not None), None)


def require_finite_weights(weights: Mapping[str, Tensor], owner: str) -> None:
    """Refuses weights that are not finite.

    Raises:
        NotFiniteError: A tensor holds NaN or Inf; names it.
    """
    name = not_finite(weights)
    if name is not None:
        raise NotFiniteError(f"{owner} holds numbers that are not finite, in {name}: it comes from a run that diverged")


def require_finite_logits(logits: Tensor, rows: str = "clouds") -> Tensor:
    """Gives the logits back. [M, ...]

    Raises:
        NotFiniteError: Some are NaN or Inf, so that no class can be predicted; says for how many clouds.
    """
    bad = ~logits.isfinite().flatten(1).all(1)
    if bool(bad.any()):
        raise NotFiniteError(f"the model's logits are not finite for {int(bad.sum())} of {len(logits)} {rows}")
    return logits


class Divergence:
    """Checks the gradients of every step, and at the end of an epoch everything that is about to be written.

    Args:
        recipe: The run's `Recipe`.
        device: On the CPU each step is looked at as it is made; elsewhere all at the end of the epoch, since a look
            would wait for the device.
    """

    def __init__(self, recipe: Any, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        self.epoch = 0
        self.steps: list[tuple[int, float, Tensor]] = []

    def begin(self, epoch: int) -> None:
        """Begins an epoch."""
        self.epoch = epoch
        self.steps = []

    def step(self, step: int, lr: float, norm: Tensor | None) -> None:
        """Takes the norm of a step's gradient, the same on all processes."""
        self.steps.append((step, lr, torch.as_tensor(0.0 if norm is None else norm).detach()))
        if self.device.type == "cpu":
            self._look(self.steps[-1:])

    def end(self, row: Mapping[str, float], written: Mapping[str, Any]) -> None:
        """Checks the steps of the epoch, its mean losses and the contents of the next checkpoint.

        Raises:
            NotFiniteError: Something is not finite.
        """
        self._look(self.steps)
        for name, value in row.items():
            if not math.isfinite(value):
                raise self.error(f"{name} is {value}")
        name = not_finite(written)
        if name is not None:
            raise self.error(f"{name} is not finite")

    def measure(self, function: Callable[[], Answer]) -> Answer:
        """Calls a function that measures the model; a `NotFiniteError` there is divergence, too.

        Raises:
            NotFiniteError: The function raised one.
        """
        try:
            return function()
        except NotFiniteError as error:
            raise self.error(str(error)) from error

    def losses(self, function: Callable[[], Answer], points: Tensor) -> Answer:
        """Calls what gives the losses of a step. An operation that refuses its input there, as not finite, got it from
        the model, where the step's points are finite.

        Raises:
            NotFiniteError: An operation refused numbers of the model.
        """
        try:
            return function()
        except (ValueError, RuntimeError) as error:
            if "finite" not in str(error) or isinstance(error, NotFiniteError) or not bool(points.isfinite().all()):
                raise
            raise self.error(str(error)) from error

    def require_finite_loss(self, losses: Callable[[], Mapping[str, Tensor]], points: Tensor) -> None:
        """Looks at the losses of the weights as they are now, by one batch: those of the log are of before the step.

        Raises:
            NotFiniteError: One is not finite, on any process.
        """
        with torch.no_grad():
            values = self.losses(losses, points)
        bad = [name for name, value in values.items() if not bool(value.isfinite().all())]
        if largest(float(bool(bad)), self.device):
            raise self.error(f"{bad[0] if bad else 'the loss'} is not finite behind the last step")

    def _look(self, steps: list[tuple[int, float, Tensor]]) -> None:
        if not steps or bool(torch.stack([norm for _, _, norm in steps]).isfinite().all()):
            return
        step, lr, norm = next(entry for entry in steps if not bool(entry[2].isfinite()))
        raise self.error(f"the norm of the gradient is {float(norm)}", step, lr)

    def error(self, what: str, step: int | None = None, lr: float | None = None) -> NotFiniteError:
        """The error that ends the run."""
        if step is None and self.steps:
            step, lr, _ = self.steps[-1]
        checkpoint = f"The checkpoint of epoch {self.epoch} is kept" if self.epoch else "No checkpoint was written"
        position = "" if step is None else f", step {step + 1}, at the learning rate {lr:.3g}"
        return NotFiniteError(
            f"training diverged in epoch {self.epoch + 1}{position}: {what}. {checkpoint}; a run resumed from it "
            f"would diverge again. Begin a new run with a smaller lr than {self.recipe.lr:g}, a longer warm-up, or a "
            f"smaller clip than {self.recipe.clip:g}"
        )
