"""SCT: a linear map of the few channels that stand out most in the training set."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pointpeft.backbones.context import Context
from pointpeft.backbones.layers import Block
from pointpeft.methods.base import PREFIX_TOKENS, Method, TrainingClouds, factory_kwargs, register_method
from pointpeft.model import PointModel


class SalientChannels(nn.Module):
    """x_I ← x_I + s · (W x_I + b) on the channels I; all others pass.

    Args:
        count: N, channels in I.
        scale: s.
    """

    channels: Tensor  # I, int64, ascending. [N]

    def __init__(self, count: int, scale: float, *, device: Any = None, dtype: Any = None):
        super().__init__()
        self.linear = nn.Linear(count, count, device=device, dtype=dtype)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)
        self.scale = scale
        self.register_buffer("channels", torch.arange(count, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]"""
        update = self.scale * self.linear(x.index_select(-1, self.channels))
        return x.index_add(-1, self.channels, update.to(x.dtype))


class SCTBlock(Block):
    """A frozen block that adapts the salient channels of x + Attn(LN1 x)."""

    def __init__(self, block: Block, count: int, scale: float):
        self.adopt(block)
        self.salient = SalientChannels(count, scale, **factory_kwargs(block))
        self.observed: list[Tensor] | None = None  # while `salience` looks at the frozen block

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """[B, T, C] -> [B, T, C]"""
        x = self.attention_half(x, ctx)
        if self.observed is None:
            x = self.salient(x)
        else:
            self.observed.append(ctx.split(x)[2].float().square().sum(1))
        x, u = self.mlp_inputs(x)
        return x + self.drop_path(self.mlp(u))


@torch.no_grad()
def salience(model: PointModel, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """How much each channel stands out where the adapters sit, in the frozen backbone.

    For one class it is the L2 norm of a channel over all patch tokens of all clouds of the class; then the mean over
    the classes, so that large ones do not decide alone.

    Args:
        model: Adapted by SCT.
        batches: Clouds [B, N, 3] with the class of each, int64 [B].

    Returns:
        One row a block. [L, C]

    Raises:
        ValueError: No clouds.
    """
    blocks, training = list(model.backbone.blocks), model.training
    squares: dict[int, Tensor] = {}
    model.eval()
    try:
        for xyz, classes in batches:
            for block in blocks:
                block.observed = []
            model.backbone(xyz, {})
            responses = torch.stack([block.observed[0] for block in blocks])  # [L, B, C]
            for label in classes.unique().tolist():
                of_class = responses[:, (classes == label).to(responses.device)].double().sum(1)
                squares[label] = squares[label] + of_class if label in squares else of_class
    finally:
        for block in blocks:
            block.observed = None
        model.train(training)
    if not squares:
        raise ValueError("batches must hold at least one cloud")
    return torch.stack(list(squares.values())).sqrt().mean(0)


@register_method
@dataclass(frozen=True)
class SCT(Method):
    """Salient channel tuning: the same linear map for all tokens, on a quarter of the channels.

    Which channels, `finetune` and `compare` find out from the training clouds and their classes before they train;
    elsewhere `prepare` does. They are a buffer, so that adapters on disk hold them. Unprepared, the first N are taken.
    The map reads and writes the residual stream, so that nothing can be folded, and starts small, but not at zero.

    Attributes:
        channels: N of them; None for a quarter of the width, 96 at the published size.
        scale: s; the publication chooses it for each data set.

    Source: Zhao et al., "SCT: a simple baseline for parameter-efficient fine-tuning via salient channels", IJCV 2024,
    and its code, in the form that it calls sct_attn.
    """

    channels: int | None = None
    scale: float = 1.0

    trains = (PREFIX_TOKENS,)

    def __post_init__(self) -> None:
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"channels must be at least 1, got {self.channels}")

    def build(self, model: PointModel) -> None:
        """Puts the maps in.

        Raises:
            ValueError: The backbone has fewer channels.
        """
        backbone = model.backbone
        width = backbone.config.width
        count = max(1, width // 4) if self.channels is None else self.channels
        if count > width:
            raise ValueError(f"channels must be at most the width {width}, got {count}")
        for i, block in enumerate(backbone.blocks):
            backbone.blocks[i] = SCTBlock(block, count, self.scale)

    def prepare(self, model: PointModel, clouds: TrainingClouds) -> None:
        """Chooses the channels of every block."""
        for block, scores in zip(model.backbone.blocks, salience(model, clouds.labelled()), strict=True):
            channels = block.salient.channels
            channels.copy_(scores.topk(len(channels)).indices.sort().values)
