"""Clouds of a data set embedded in a plane by the features that the classifier's head gets."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from pointpeft.data.on_demand import OnDemand
from pointpeft.escapes import figure_text
from pointpeft.files import write_atomically
from pointpeft.model import PointModel
from pointpeft.tasks.inference import forward_all

# How to embed -> package that does it; both come with the extra `viz`. PCA needs none.
PACKAGES = {"tsne": "sklearn", "umap": "umap"}
KINDS = ("auto", *PACKAGES, "pca")


@torch.no_grad()
def features(model: PointModel, xyz: Tensor | OnDemand, batch_size: int = 16) -> Tensor:
    """The input of a classifier's head. [M, N, 3] -> [M, F]"""
    return forward_all(model.forward_features, xyz, batch_size, next(model.parameters()).device)


def embed(values: Tensor, technique: str = "auto", seed: int = 0) -> tuple[Tensor, str]:
    """Places rows in a plane.

    Args:
        values: At least 3 rows. [M, F]
        technique: "tsne" (scikit-learn), "umap" (umap-learn), "pca" (nothing but torch), or "auto": t-SNE where
            scikit-learn is installed, else PCA.
        seed: Of t-SNE and UMAP.

    Returns:
        Their places [M, 2], and the name of what was done.

    Raises:
        ValueError: Another kind, or too few rows.
        ImportError: The package is not installed.
    """
    if technique not in KINDS:
        raise ValueError(f"features must be one of {', '.join(KINDS)}, got {technique!r}")
    if values.dim() != 2 or len(values) < 3:
        raise ValueError(f"values must be (M, F) with at least 3 rows, got {tuple(values.shape)}")
    if technique == "auto":
        technique = "tsne" if find_spec("sklearn") is not None else "pca"
    if technique == "pca":
        return _principal(values.double())
    if find_spec(PACKAGES[technique]) is None:
        raise ImportError(f"features {technique!r} needs a package that is not installed: pip install 'pointpeft[viz]'")
    rows = values.float().numpy()
    if technique == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(values) - 1) / 3)
        done = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(rows)
        return torch.from_numpy(done).float(), f"t-SNE, perplexity {perplexity:.0f}"
    from umap import UMAP

    neighbors = min(15, len(values) - 1)
    done = UMAP(n_neighbors=neighbors, init="pca", random_state=seed, n_jobs=1).fit_transform(rows)
    return torch.from_numpy(done).float(), f"UMAP, {neighbors} neighbours"


def _principal(values: Tensor) -> tuple[Tensor, str]:
    u, s, _ = torch.linalg.svd(values - values.mean(0), full_matrices=False)
    share = float(s[:2].square().sum() / s.square().sum().clamp(min=1e-300))
    return (u[:, :2] * s[:2]).float(), f"PCA, {share:.0%} of the variance"


def write_embedding(path: Path, places: Tensor, labels: Tensor, classes: Sequence[str], title: str) -> None:
    """Draws clouds as dots coloured by class, with a legend, into a PNG. [M, 2], int64 [M]"""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    palette = colormaps["tab20"]
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.add_subplot()
    for number, label in enumerate(labels.unique().tolist()):
        members = places[labels == label]
        marker = "os^vD"[number // palette.N % 5]  # tab20 comes round after 20 classes, the marker then changes
        axes.scatter(
            *members.unbind(1),
            s=14,
            color=palette(number % palette.N),
            marker=marker,
            label=figure_text(classes[label]),
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(figure_text(title), fontsize=10)
    figure.legend(loc="outside right upper", fontsize=7)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120, format="png"))
