"""Classification metrics of a whole test set."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix

from pointpeft.training.divergence import require_finite_logits


@dataclass(frozen=True)
class Metrics:
    """How well logits fit labels.

    Attributes:
        overall_accuracy: Share of the clouds classified correctly (OA).
        mean_class_accuracy: Mean over the classes present of their share classified correctly (mAcc).
        loss: Mean cross-entropy.
        confusion: Clouds of true class i predicted as class j. [classes, classes]
        clouds: How many.
    """

    overall_accuracy: float
    mean_class_accuracy: float
    loss: float
    confusion: Tensor
    clouds: int

    @property
    def score(self) -> list[float]:
        """Numbers that selection maximises, in order of precedence."""
        return [self.overall_accuracy, -self.loss]

    def logged(self) -> dict[str, float]:
        """Numbers for the log of every epoch."""
        return {"accuracy": self.overall_accuracy, "class accuracy": self.mean_class_accuracy, "loss": self.loss}

    def summary(self) -> dict[str, float | int]:
        """The single numbers, rounded as results are printed."""
        return {
            "overall_accuracy": round(self.overall_accuracy, 4),
            "mean_class_accuracy": round(self.mean_class_accuracy, 4),
            "loss": round(self.loss, 4),
            "clouds": self.clouds,
        }

    def per_class(self, classes: tuple[str, ...]) -> dict[str, dict[str, float | int | None]]:
        """Accuracy and number of clouds by class name; None where a class has no cloud."""
        counts = self.confusion.sum(1).tolist()
        right = self.confusion.diagonal().tolist()
        return {
            name: {"accuracy": round(r / n, 4) if n else None, "clouds": n}
            for name, r, n in zip(classes, right, counts, strict=True)
        }


def measure(logits: Tensor, labels: Tensor) -> Metrics:
    """Metrics of logits [M, classes] against labels [M].

    Raises:
        NotFiniteError: The model is broken: it gives NaN or Inf.
        ValueError: There is but one class, so that nothing can be told apart.
    """
    classes = logits.shape[1]
    if classes < 2:
        raise ValueError(f"a classifier needs at least 2 classes to tell apart, got {classes}")
    require_finite_logits(logits)
    confusion = multiclass_confusion_matrix(logits, labels, num_classes=classes)
    present = confusion.sum(1) > 0
    each = multiclass_accuracy(logits, labels, num_classes=classes, average="none")
    return Metrics(
        overall_accuracy=float(multiclass_accuracy(logits, labels, num_classes=classes, average="micro")),
        mean_class_accuracy=float(each[present].mean()),
        loss=float(torch.nn.functional.cross_entropy(logits, labels)),
        confusion=confusion,
        clouds=len(labels),
    )
