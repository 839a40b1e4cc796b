"""The classifier on pooled features."""

from typing import Any, ClassVar

from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}


class ClassificationHead(nn.Module):
    """Linear layers with BatchNorm, ReLU and dropout between them; two hidden layers of 256 as published.

    Args:
        in_dim: Width of the features.
        num_classes: Number of logits.
        hidden: Widths of the hidden layers.
        dropout: After each hidden layer.
        batchnorm: Whether each hidden layer is normalised; Point-BERT's head has none.
        activation: Of each hidden layer, a key of `ACTIVATIONS`.

    Source: the classifier of Point-MAE (ECCV 2022), which later methods share.
    """

    # Its layout in published files is the backbone's, since backbones differ there.
    published_renames: ClassVar[tuple[tuple[str, str], ...]] = ()

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        hidden: tuple[int, ...] = (256, 256),
        dropout: float = 0.5,
        batchnorm: bool = True,
        activation: str = "relu",
        *,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        layers: list[nn.Module] = []
        for width in hidden:
            layers.append(nn.Linear(in_dim, width, **factory))
            if batchnorm:
                layers.append(nn.BatchNorm1d(width, **factory))
            layers += [ACTIVATIONS[activation](), nn.Dropout(dropout)]
            in_dim = width
        self.layers = nn.Sequential(*layers, nn.Linear(in_dim, num_classes, **factory))

    def forward(self, features: Tensor) -> Tensor:
        """[B, in_dim] -> [B, num_classes]"""
        return self.layers(features)
