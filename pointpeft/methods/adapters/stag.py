"""STAG: a graph network at the side of the backbone, without gradients through its lower half."""

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointpeft.backbones.context import Context
from pointpeft.backbones.plain import is_plain
from pointpeft.methods.base import Method, factory_kwargs, register_method
from pointpeft.model import PointModel
from pointpeft.ops import aggregate_neighbors, knn
from pointpeft.weights.publication import Publication


class GraphAdapter(nn.Module):
    """h_i ← W_3 (W_1 h_i + max_j W_2 h_j) over the neighbours j of patch i, and the displacement d = ReLU(W_up h)."""

    def __init__(self, width: int, rank: int, factory: dict[str, Any]):
        super().__init__()
        self.center = nn.Linear(rank, rank, **factory)
        self.neighbor = nn.Linear(rank, rank, **factory)
        self.mix = nn.Linear(rank, rank, **factory)
        self.up = nn.Linear(rank, width, **factory)

    def forward(self, h: Tensor, idx: Tensor) -> tuple[Tensor, Tensor]:
        """State [B, G, R] and neighbours int64 [B, G, K] -> the next state [B, G, R], displacements [B, G, C]"""
        h = self.mix(self.center(h) + aggregate_neighbors(self.neighbor(h), idx, "max"))
        return h, F.relu(self.up(h))


class SideNetwork(nn.Module):
    """The side network: its state h accumulates the tokens that enter each block, h ← h + W_down x."""

    def __init__(self, method: "STAG", width: int, depth: int, factory: dict[str, Any]):
        super().__init__()
        self.first, self.k, self.depth = depth - math.ceil(method.adapted * depth), method.k, depth
        self.share_down = method.share_down or depth
        self.share_graph = method.share_graph or depth
        adapted = depth - self.first
        self.down = nn.ModuleList(
            nn.Linear(width, method.rank, **factory) for _ in range(math.ceil(depth / self.share_down))
        )
        self.graph = nn.ModuleList(
            GraphAdapter(width, method.rank, factory) for _ in range(math.ceil(adapted / self.share_graph))
        )


@dataclass
class SideState:
    """State of a forward pass.

    Attributes:
        h: The state. [B, G, R], None before the first projection
        waiting: Sum of tokens that have not been projected yet. [B, G, C]
        count: How many tokens that sum is of.
    """

    h: Tensor | None = None
    waiting: Tensor | None = None
    count: int = 0


class STAGBlock(nn.Module):
    """A frozen block of any kind with the side network beside it, and from the first adapted one behind it too."""

    def __init__(self, block: nn.Module, side: SideNetwork, index: int):
        super().__init__()
        self.block = block
        self.index = index
        self._side = (side,)  # in a tuple, so that the shared module has one name only

    def gather(self, state: SideState, tokens: Tensor) -> None:
        """H ← h + W_down x. Tokens of blocks with one W are added up first: W is linear, and keeps one input then."""
        side, i = self._side[0], self.index
        down: Any = side.down[i // side.share_down]
        if not is_plain(down, nn.Linear):  # it may be no linear map of a sum
            projected = down(tokens)
            state.h = projected if state.h is None else state.h + projected
            return
        state.waiting = tokens if state.waiting is None else state.waiting + tokens
        state.count += 1
        if i + 1 < side.first and (i + 1) % side.share_down:
            return
        projected = F.linear(state.waiting, down.weight) + state.count * down.bias
        state.h = projected if state.h is None else state.h + projected
        state.waiting, state.count = None, 0

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """[B, T, C] -> [B, T, C]"""
        side = self._side[0]
        state = ctx.cached("stag", SideState)
        self.gather(state, ctx.split(x)[2])
        x = self.block(x, ctx)
        if self.index >= side.first:
            k = min(side.k, ctx.num_groups)
            idx = ctx.cached("stag.near", lambda: knn(ctx.centers, ctx.centers, k)[1])
            state.h, d = side.graph[(self.index - side.first) // side.share_graph](state.h, idx)
            mean = d.mean(1, keepdim=True)
            prefix, prompts, _, suffix = (group.shape[1] for group in ctx.split(x))
            x = x + torch.cat([mean.expand(-1, prefix + prompts, -1), d, mean.expand(-1, suffix, -1)], 1)
        if self.index + 1 == side.depth:
            ctx.cache["stag.tokens"] = x
        return x


class TokenMean(nn.Module):
    """The mean over all tokens as they leave the last block, before the backbone's norm."""

    def __init__(self, width: int):
        super().__init__()
        self.out_dim = width

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """[B, T, C] -> [B, C]"""
        return ctx.cache["stag.tokens"].mean(1)


SLIGHTLY_LARGE = {"adapted": 0.75, "share_down": 3, "share_graph": 3}
GRAPH_NAMES = {"center": "graphconv1", "neighbor": "graphconv2", "mix": "fc", "up": "upproj"}  # ours: published


@register_method
@dataclass(frozen=True)
class STAG(Method):
    """Side token adaptation on a neighbourhood graph.

    A side network gathers the tokens of all blocks, and moves those of the upper blocks by what a graph convolution
    over neighbouring patches makes of them. No gradient goes below the first block whose output it moves: nothing of
    the lower blocks is kept for the backward pass, and the class token stays as it is. As published, the head reads the
    mean over all tokens before the last norm, and the start is not the plain backbone.

    The defaults are the published standard size at 12 blocks. The slightly large one is `adapted=0.75, share_down=3,
    share_graph=3`.

    Attributes:
        rank: R of the side network.
        k: Neighbours of a patch, itself among them; where a cloud has fewer patches, all of them.
        adapted: Share of the blocks, from the last, whose output is moved.
        share_down: How many blocks in a row have one down projection; 0 for all.
        share_graph: How many adapted blocks in a row have one graph convolution and up projection; 0 for all.

    Source: Furuya, "Token adaptation via side graph convolution for efficient fine-tuning of 3D point cloud
    transformers", MVA 2025, and its code.
    """

    rank: int = 192
    k: int = 8
    adapted: float = 0.5
    share_down: int = 0
    share_graph: int = 0

    publication = Publication(markers=(".addparam_",), convolutions=(r"\.addparam_\w+\.\d+\.0\.weight$",))

    def __post_init__(self) -> None:
        for name, minimum in (("rank", 1), ("k", 1), ("share_down", 0), ("share_graph", 0)):
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {getattr(self, name)}")
        if not 0 < self.adapted <= 1:
            raise ValueError(f"adapted must be above 0 and at most 1, got {self.adapted}")

    @classmethod
    def published_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Our options for published weights; `stag_size` beside the YAML file's keys tells the size, 0 or 1.

        Raises:
            ValueError: Another size.
        """
        size = config.get("stag_size", 0)
        if size not in (0, 1):
            raise ValueError(f"stag_size must be 0 (standard) or 1 (slightly large), got {size!r}")
        return {**cls.yaml_options(config), **(SLIGHTLY_LARGE if size else {})}

    def published_renames(self, model: PointModel) -> tuple[tuple[str, str], ...]:
        """Each part has the number of the first block that it serves in its published name."""
        side: SideNetwork = model.backbone.side
        pairs = [(f"down.{i}", f"downproj_dict.{i * side.share_down}") for i in range(len(side.down))]
        for i in range(len(side.graph)):
            first = side.first + i * side.share_graph
            pairs += [(f"graph.{i}.{ours}", f"{theirs}_dict.{first}") for ours, theirs in GRAPH_NAMES.items()]
        return (
            (r"^(blocks\.blocks\.\d+)\.block\.", r"\1."),
            *((rf"^side\.{re.escape(ours)}\.", f"blocks.addparam_{theirs}.0.") for ours, theirs in pairs),
        )

    def build(self, model: PointModel) -> None:
        """Puts the side network beside the blocks."""
        backbone = model.backbone
        width, depth = backbone.config.width, len(backbone.blocks)
        backbone.side = SideNetwork(self, width, depth, factory_kwargs(backbone))
        for i, block in enumerate(backbone.blocks):
            backbone.blocks[i] = STAGBlock(block, backbone.side, i)
        model.set_pooling(TokenMean(width))
