"""PCP-MAE's transformer: Point-MAE's network with sines and cosines of the centres before its position MLP."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointpeft.backbones.point_mae import PointMAE, PointMAEConfig
from pointpeft.backbones.registry import register_backbone

TEMPERATURE = 10_000


@dataclass(frozen=True)
class PCPMAEConfig(PointMAEConfig):
    """Fields of a `PCPMAE`: those of a `PointMAE`."""


class WavePosition(nn.Sequential):
    """MLP of [sin(ω x), cos(ω x)] for each coordinate x in turn, with F = ⌊C / 6⌋ frequencies ω_i = 10000^(-i / F).

    Where C is no multiple of six, zeros stand in the channels that are left.
    """

    def __init__(self, width: int, *, device: Any = None, dtype: Any = None):
        factory = {"device": device, "dtype": dtype}
        super().__init__(nn.Linear(width, width, **factory), nn.GELU(), nn.Linear(width, width, **factory))
        self.width = width

    def forward(self, input: Tensor) -> Tensor:
        """[B, M, 3] -> [B, M, C]"""
        count = self.width // 6
        exponent = torch.arange(count, device=input.device, dtype=torch.float32) / count
        angle = input.float()[..., None] * TEMPERATURE**-exponent  # [B, M, 3, F]
        waves = torch.cat([angle.sin(), angle.cos()], -1).flatten(-2)
        return super().forward(F.pad(waves, (0, self.width - waves.shape[-1])).to(input.dtype))


class PCPMAE(PointMAE):
    """The encoder of PCP-MAE with a class token, as it is fine-tuned.

    Its files have the names of Point-MAE; the position MLP, square from C to C, tells them apart.

    Source: Zhang et al., "PCP-MAE: learning to predict centers for point masked autoencoders", NeurIPS 2024, and its
    published code.
    """

    family = "pcp_mae"

    def make_pos_embed(self, config: Any, *, device: Any = None, dtype: Any = None) -> nn.Module:
        """What turns centres into positions: [B, G, 3] -> [B, G, C]."""
        return WavePosition(config.width, device=device, dtype=dtype)

    @classmethod
    def shown_by(cls, state: dict[str, Tensor]) -> str | None:
        """What in a published file shows this backbone: the square weight of its position MLP."""
        weight = state.get("pos_embed.0.weight")
        square = weight is not None and weight.dim() == 2 and weight.shape[0] == weight.shape[1]
        return f"a pos_embed.0.weight of {tuple(weight.shape)}" if weight is not None and square else None

    @classmethod
    def published_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Our fields from the `model:` section of a published YAML file, whose `type` must be full, if given."""
        if config.get("type", "full") != "full":
            raise ValueError(f"type must be full, whose head has three layers, got {config['type']!r}")
        return super().published_config(config)


PCPMAEConfig.backbone_type = PCPMAE


@register_backbone
def pcp_mae() -> PCPMAEConfig:
    """The published size: 12 blocks of width 384, 22.3 million parameters."""
    return PCPMAEConfig()


@register_backbone
def pcp_mae_tiny() -> PCPMAEConfig:
    """6 blocks of width 96, 64 patches of 32 points; small enough to train without a GPU."""
    return PCPMAEConfig(width=96, depth=6, num_heads=3, num_groups=64, embed_width=32, drop_path=0.0)
