"""FacT: one small factorisation holds the updates of all weights of all blocks."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pointpeft.backbones.layers import linear
from pointpeft.methods.base import PREFIX_TOKENS, Method, factory_kwargs, register_method
from pointpeft.model import PointModel

FORMS = ("tt", "tk")
TARGETS = (("attn", "qkv"), ("attn", "proj"), ("mlp", "fc1"), ("mlp", "fc2"))


class Factors(nn.Module):
    """ΔW_p = s · (U Σ_p V)ᵀ for every C x C part p of the weights, with U and V the same for all parts.

    Tensor train: a free Σ_p for each part. Tucker: Σ_p = Σ_c K[:, :, c] P[c, p] with one core K.

    Args:
        width: C.
        rank: R.
        inputs: Input parts of the layer that each part belongs to, for the initial values as published.
        form: "tt" or "tk".
    """

    def __init__(
        self, width: int, rank: int, inputs: list[int], form: str, *, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.u = nn.Parameter(torch.empty(width, rank, **factory))
        self.v = nn.Parameter(torch.zeros(rank, width, **factory))  # so that all updates start as zero
        nn.init.uniform_(self.u, -1 / math.sqrt(width), 1 / math.sqrt(width))
        self.form = form
        if form == "tt":
            self.sigma = nn.Parameter(torch.empty(len(inputs), rank, rank, **factory))
            bound = 1 / (torch.tensor(inputs, **factory) * rank).sqrt()
            with torch.no_grad():
                self.sigma.uniform_(-1, 1).mul_(bound.view(-1, 1, 1))
        else:
            self.core = nn.Parameter(torch.empty(rank, rank, rank, **factory))
            self.parts = nn.Parameter(torch.empty(rank, len(inputs), **factory))
            nn.init.xavier_uniform_(self.core)
            nn.init.xavier_uniform_(self.parts)

    def middle(self, first: int, count: int) -> Tensor:
        """Σ of `count` parts in a row. [count, R, R]"""
        if self.form == "tt":
            return self.sigma[first : first + count]
        return (self.core @ self.parts[:, first : first + count]).movedim(-1, 0)


class FacTLinear(nn.Module):
    """y_i = (W x)_i + s · Σ_j Dropout(x_j U Σ_ij) V over the C-wide parts x_j of the input and y_i of the output.

    Args:
        layer: The frozen map.
        factors: What all layers share.
        first: Which part of the network's is this layer's first.
        scale: s.
        dropout: Between Σ and V.
    """

    def __init__(self, layer: nn.Linear, factors: Factors, first: int, scale: float, dropout: float):
        super().__init__()
        self.layer = layer
        self.factors_of_all = [factors]  # in a list: they belong to the backbone, not to this layer
        width = factors.u.shape[0]
        self.first, self.scale = first, scale
        self.outputs, self.inputs = layer.out_features // width, layer.in_features // width
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.dropout = nn.Dropout(dropout)

    @property
    def middle(self) -> Tensor:
        """Σ_ij of this layer. [outputs, inputs, R, R]"""
        middle = self.factors_of_all[0].middle(self.first, self.outputs * self.inputs)
        return middle.unflatten(0, (self.outputs, self.inputs))

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs · C] -> [..., outputs · C]"""
        factors = self.factors_of_all[0]
        low = (x.unflatten(-1, (self.inputs, -1)) @ factors.u).flatten(-2)  # [..., inputs · R]
        middle = self.middle.permute(1, 2, 0, 3).flatten(2).flatten(0, 1)  # [inputs · R, outputs · R]
        mixed = self.dropout(low @ middle).unflatten(-1, (self.outputs, -1))
        return linear(self.layer, x) + self.scale * (mixed @ factors.v).flatten(-2)

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """The frozen map with the update in its weight."""
        factors = self.factors_of_all[0]
        update = torch.einsum("cr,ijrs,sd->idjc", factors.u, self.middle, factors.v).reshape(self.layer.weight.shape)
        self.layer.weight = nn.Parameter(self.layer.weight + self.scale * update, requires_grad=False)
        return self.layer


@register_method
@dataclass(frozen=True)
class FacT(Method):
    """Factor tuning: the weights' updates as one tensor, in its tensor-train or Tucker form.

    The maps of all blocks are cut into parts of C x C: 12 a block where the MLP is four times as wide as the tokens.
    The updates start as zero. The published Tucker code reshapes the middle factors of the MLP's first map in another
    order than that of its parts, so that each part takes columns of all four factors; here every part has its own, as
    in the paper.

    Attributes:
        form: "tt" for tensor train, "tk" for Tucker.
        rank: R. The publication takes 8 to 16 for the first, 32 and more for the second.
        scale: s; the publication looks for it between 0.01 and 100 for each data set.
        dropout: Before the last factor.

    Source: Jie and Deng, "FacT: factor-tuning for lightweight adaptation on vision transformer", AAAI 2023, and its
    code.
    """

    form: str = "tt"
    rank: int = 16
    scale: float = 1.0
    dropout: float = 0.1

    trains = (PREFIX_TOKENS,)
    mergeable = True

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, got {self.form!r}")
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")

    def build(self, model: PointModel) -> None:
        """Puts the factors beside the blocks and the updates into their maps.

        Raises:
            ValueError: The hidden width of an MLP is no multiple of the tokens' width.
        """
        backbone = model.backbone
        width = backbone.config.width
        layers = [(block.get_submodule(path), name) for block in backbone.blocks for path, name in TARGETS]
        sizes = [(getattr(parent, name).out_features, getattr(parent, name).in_features) for parent, name in layers]
        for (_, name), size in zip(layers, sizes, strict=True):
            if any(features % width for features in size):
                raise ValueError(
                    f"mlp_ratio must be whole, for parts of {width} x {width}; {name} is {size[0]} x {size[1]}"
                )
        inputs = [size[1] // width for size in sizes for _ in range(size[0] * size[1] // width**2)]
        backbone.factors = Factors(width, self.rank, inputs, self.form, **factory_kwargs(backbone))
        first = 0
        for (parent, name), size in zip(layers, sizes, strict=True):
            setattr(parent, name, FacTLinear(getattr(parent, name), backbone.factors, first, self.scale, self.dropout))
            first += size[0] * size[1] // width**2

    def fold(self, model: PointModel) -> None:
        """Adds all updates to the weights."""
        for block in model.backbone.blocks:
            for path, name in TARGETS:
                parent = block.get_submodule(path)
                setattr(parent, name, getattr(parent, name).folded())
        del model.backbone.factors
