"""A classifier for few labels that is solved in closed form instead of trained."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (0.125, 0.25, 0.5, 1.0)  # over the median squared distance, the factors in the exponent that are tried
RIDGES = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)  # over the mean eigenvalue, the ridges that are tried
SHARPNESS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # factors from scores to logits that are tried
MAX_SUPPORT = 1024  # clouds that the classifier remembers, at most
LEAST_SPREAD = 1e-4  # a feature that spreads less than so many times the most spread one is not blown up further


class Group(NamedTuple):
    """Features that stand side by side and count together.

    Attributes:
        size: How many.
        weight: What the group contributes to squared distances, on average.
    """

    size: int
    weight: float


class KernelHead(nn.Module):
    """Compares a cloud with clouds that it remembers, by a Gaussian kernel.

        z(x) = (x - mean) · scale,    logits(x) = bias + Σ_m α_m exp(-‖z(x) - z_m‖²)

    Args:
        in_dim: F, width of the features.
        num_classes: Number of logits.
        num_support: M, how many clouds are remembered.
    """

    def __init__(self, in_dim: int, num_classes: int, num_support: int, *, device: Any = None, dtype: Any = None):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.register_buffer("mean", torch.zeros(in_dim, **factory))
        self.register_buffer("scale", torch.ones(in_dim, **factory))
        self.register_buffer("support", torch.zeros(num_support, in_dim, **factory))
        self.coefficients = nn.Parameter(torch.zeros(num_support, num_classes, **factory))
        self.bias = nn.Parameter(torch.zeros(num_classes, **factory))

    def forward(self, features: Tensor) -> Tensor:
        """[B, in_dim] -> [B, num_classes]"""
        z = (features - self.mean) * self.scale
        return _gaussian(z, self.support) @ self.coefficients + self.bias


class Solution(NamedTuple):
    """A solved classifier.

    Attributes:
        head: The classifier.
        accuracy: Of each cloud by the classifier of all others: the leave-one-out estimate, optimistic by the choice of
            width and ridge alone.
        loss: The cross-entropy of the same, by which width, ridge and sharpness were chosen.
    """

    head: KernelHead
    accuracy: float
    loss: float


def solve_kernel_head(
    features: Tensor, labels: Tensor, num_classes: int, groups: Sequence[Group] | None = None
) -> Solution:
    """Solves kernel ridge regression on labels, and chooses its width, ridge and sharpness by leave-one-out.

    One eigenvalue problem gives the prediction for every cloud by all others, for every ridge; nothing is held out and
    nothing is random, but which clouds are remembered where there are more than `MAX_SUPPORT`.

    Args:
        features: Of the training clouds. [M, F]
        labels: Their classes, int64. [M]
        num_classes: Number of classes.
        groups: How the features belong together; None for one group.

    Returns:
        The classifier, on the CPU in float32, with its leave-one-out estimate.

    Raises:
        ValueError: Fewer than two clouds, counts that do not agree, or features that are not finite.
    """
    if features.dim() != 2 or len(features) != len(labels) or len(features) < 2:
        raise ValueError(
            f"features must be one row for each of at least 2 labels, got {list(features.shape)} for {len(labels)}"
        )
    groups = [Group(features.shape[1], 1.0)] if groups is None else groups
    if sum(group.size for group in groups) != features.shape[1]:
        raise ValueError(f"groups must add up to the {features.shape[1]} features, got {[g.size for g in groups]}")
    x, labels = features.double().cpu(), labels.cpu()
    if not bool(x.isfinite().all()):
        raise ValueError("features must be finite")
    mean, scale = x.mean(0), _scale(x, groups)
    z = (x - mean) * scale
    support = z[_remembered(labels)]
    median = float(_distances(z, support).median().clamp_min(1e-12))
    targets = 2 * F.one_hot(labels, num_classes).double() - 1
    best: tuple[float, float, float, Tensor] | None = None
    for width in WIDTHS:
        root = (width / median) ** 0.5
        kernel = _gaussian(root * z, root * support)
        loss, accuracy, coefficients = _solve(kernel, _gaussian(root * support, root * support), targets, labels)
        if best is None or loss < best[0]:
            best = (loss, accuracy, root, coefficients)
    assert best is not None
    loss, accuracy, root, coefficients = best
    head = KernelHead(x.shape[1], num_classes, len(support))
    head.load_state_dict(
        {
            "mean": mean,
            "scale": root * scale,
            "support": root * support,
            "coefficients": coefficients[:-1],
            "bias": coefficients[-1],
        }
    )
    return Solution(head.eval(), accuracy, loss)


def _solve(kernel: Tensor, among_support: Tensor, targets: Tensor, labels: Tensor) -> tuple[float, float, Tensor]:
    """The best ridge for one kernel: leave-one-out loss and accuracy, and coefficients [S + 1, C], the bias last.

    With Φ = K V w^-1/2, where V, w are the eigenvectors and eigenvalues among the support, and ΦᵀΦ = Q e Qᵀ, the
    predictions for ridge r are U e/(e+r) Uᵀ Y with U = Φ Q e^-1/2. Leaving a cloud out divides its residual by 1 - h,
    where h is its place on the diagonal of U e/(e+r) Uᵀ.
    """
    centre = targets.mean(0)
    values, vectors = torch.linalg.eigh(among_support)
    used = values > 1e-8 * values[-1]
    whiten = vectors[:, used] / values[used].sqrt()
    basis = kernel @ whiten
    spectrum, rotation = torch.linalg.eigh(basis.T @ basis)
    spectrum = spectrum.clamp_min(1e-12)
    left = basis @ rotation / spectrum.sqrt()
    projected = left.T @ (targets - centre)
    best: tuple[float, float, Tensor] | None = None
    for ridge in RIDGES:
        amount = ridge * float(spectrum.mean())
        shrink = spectrum / (spectrum + amount)
        residual = targets - centre - left @ (shrink[:, None] * projected)
        leverage = left.square() @ shrink
        scores = targets - residual / (1 - leverage).clamp_min(1e-6)[:, None]
        losses = [(float(F.cross_entropy(scores * sharp, labels)), sharp) for sharp in SHARPNESS]
        loss, sharp = min(losses)
        if best is None or loss < best[0]:
            coefficients = whiten @ (rotation @ ((shrink / spectrum.sqrt())[:, None] * projected))
            accuracy = float((scores.argmax(1) == labels).double().mean())
            best = (loss, accuracy, sharp * torch.cat([coefficients, centre[None]]))
    assert best is not None
    return best


def _scale(x: Tensor, groups: Sequence[Group]) -> Tensor:
    """Factors that give every feature of a group the same spread, and every group its weight. [F]"""
    factors = []
    for part, group in zip(x.split([group.size for group in groups], 1), groups, strict=True):
        spread = part.std(0)
        spread = spread.clamp_min(max(LEAST_SPREAD * float(spread.max()), 1e-12))
        factors.append((group.weight / group.size) ** 0.5 / spread)
    return torch.cat(factors)


def _remembered(labels: Tensor) -> Tensor:
    """All clouds, or `MAX_SUPPORT` of them, of every class in turn. int64, ascending"""
    if len(labels) <= MAX_SUPPORT:
        return torch.arange(len(labels))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    turn = torch.empty(len(labels))
    for label in labels.unique():
        members = order[labels[order] == label]
        turn[members] = torch.arange(len(members), dtype=turn.dtype)
    return turn.argsort(stable=True)[:MAX_SUPPORT].sort().values


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared. [M, F], [S, F] -> [M, S]"""
    return (a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T).clamp_min(0)


def _gaussian(a: Tensor, b: Tensor) -> Tensor:
    """exp(-‖a - b‖²) of all pairs. [M, F], [S, F] -> [M, S]"""
    return (-_distances(a, b)).exp()
