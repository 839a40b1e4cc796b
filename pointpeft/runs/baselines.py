"""What a classifier has to beat: answers that take seconds, beside the result of every adaptation."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from pointpeft.heads.kernel import MAX_SUPPORT, solve_kernel_head
from pointpeft.model import PointModel
from pointpeft.runs.plan import FinetunePlan
from pointpeft.runs.result import Summary
from pointpeft.tasks.batches import Clouds
from pointpeft.tasks.inference import forward_shared
from pointpeft.training.loop import State

MEANINGS = {
    "majority": "the largest class",
    "nearest_neighbor": "the nearest training cloud in the frozen features",
    "shape": "a kernel classifier on shape descriptors alone",
    "frozen": "a kernel classifier on the frozen features and shape descriptors",
}
WAY_OUT = "take --method linear, or begin there and train only where it helps: --classifier kernel --select cv"


@dataclass(frozen=True)
class Baselines:
    """Accuracies on the test clouds, of answers from all labelled training clouds.

    Attributes:
        majority: Of the largest class.
        nearest_neighbor: Of the nearest training cloud by the angle between frozen features.
        shape: Of a kernel classifier on shape descriptors, which needs no backbone.
        frozen: Of a kernel classifier on the features of the frozen backbone beside them: `--method linear`.
    """

    majority: float
    nearest_neighbor: float
    shape: float
    frozen: float

    def summary(self) -> dict[str, float]:
        """By name, rounded as results are printed."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


def measure_baselines(
    model: PointModel,
    training: Sequence[Clouds],
    test: Clouds,
    batch_size: int,
    device: torch.device,
    title: str | None = None,
) -> Baselines:
    """Measures the baselines.

    Args:
        model: The frozen backbone with a kernel head, which is not looked at.
        training: All labelled clouds, in parts: those held out to select an epoch as well.
        test: The test clouds.
        batch_size: Clouds per step.
        device: Where to compute.
        title: Of a progress bar, or None for none.
    """
    model.to(device).eval()

    def features(clouds: Clouds) -> Tensor:
        return forward_shared(model.forward_features, clouds.fixed(), batch_size, device, title)

    known, asked = torch.cat([features(part) for part in training]), features(test)
    labels, count = torch.cat([part.labels for part in training]), len(test.classes)
    groups = model.pool.groups
    tokens = groups[0].size

    def solved(first: int) -> float:
        chosen = groups[1:] if first else groups
        return _accuracy(solve_kernel_head(known[:, first:], labels, count, chosen).head(asked[:, first:]), test)

    mean, spread = known.mean(0), known.std(0).clamp_min(1e-6)
    near, far = (F.normalize(((x - mean) / spread)[:, :tokens]) for x in (known, asked))
    nearest = labels[(far @ near.T).argmax(1)]
    return Baselines(
        majority=float((test.labels == labels.bincount(minlength=count).argmax()).float().mean()),
        nearest_neighbor=float((nearest == test.labels).float().mean()),
        shape=solved(tokens),
        frozen=solved(0),
    )


def sentences(baselines: dict[str, float]) -> list[str]:
    """What each baseline reaches. Baselines as `Baselines.summary` gives them."""
    return [f"{baselines[name]:.2%} by {meaning}" for name, meaning in MEANINGS.items()]


def verdict(accuracy: float, baselines: dict[str, float]) -> str | None:
    """A sentence on the baselines that are not reached, with a way out; None where all are.

    Args:
        accuracy: Of the adapted model on the same test clouds.
        baselines: As `Baselines.summary` gives them.
    """
    better = sorted((name for name in MEANINGS if baselines[name] > accuracy), key=lambda name: -baselines[name])
    if not better:
        return None
    reached = ", ".join(f"{MEANINGS[name]} ({baselines[name]:.1%})" for name in better)
    return f"below what takes seconds: the adapted model ({accuracy:.1%}) is worse than {reached}; {WAY_OUT}"


def _accuracy(logits: Tensor, clouds: Clouds) -> float:
    return float((logits.argmax(1) == clouds.labels).float().mean())


def kernel_outputs(training: Sequence[Clouds]) -> dict[str, Any]:
    """Arguments of `create_model` for a kernel head that is solved on these clouds."""
    return {"classifier": "kernel", "num_support": min(sum(map(len, training)), MAX_SUPPORT)}


def solve_classifier(
    model: PointModel, clouds: Clouds, batch_size: int, device: torch.device, title: str | None = None
) -> Summary:
    """Solves the kernel head of a model whose backbone is frozen, in place.

    Returns:
        Its leave-one-out estimate: "overall_accuracy", "loss" and how many "clouds".
    """
    model.to(device).eval()
    features = forward_shared(model.forward_features, clouds.fixed(), batch_size, device, title)
    solution = solve_kernel_head(features, clouds.labels, len(clouds.classes), model.pool.groups)
    model.head.load_state_dict(solution.head.state_dict())
    return {
        "overall_accuracy": round(solution.accuracy, 4),
        "loss": round(solution.loss, 4),
        "clouds": len(clouds),
    }


def solve(
    accelerator: Accelerator, plan: FinetunePlan, model: PointModel, training: Clouds
) -> tuple[State, int, Summary]:
    """Solves the classifier of a run in place of training it.

    Returns:
        What it cost, no epoch, and the leave-one-out estimate.
    """
    started = time.perf_counter()
    estimate = solve_classifier(
        model, training, plan.batch_size, accelerator.device, _title(accelerator, plan, plan.model.method)
    )
    seconds = time.perf_counter() - started
    return State(elapsed=seconds, busy=seconds, samples=len(training)), 0, estimate


def baselines_of(accelerator: Accelerator, plan: FinetunePlan, splits: dict[str, Clouds]) -> Baselines:
    """The baselines beside a run."""
    labelled = [splits[name] for name in ("train", "val") if name in splits]
    model = plan.model.build_probe(plan.task.outputs(labelled[0]) | kernel_outputs(labelled))
    title = _title(accelerator, plan, "baselines")
    return measure_baselines(model, labelled, splits["test"], plan.batch_size, accelerator.device, title)


def _title(accelerator: Accelerator, plan: FinetunePlan, title: str) -> str | None:
    return None if plan.output.quiet or not accelerator.is_main_process else title
