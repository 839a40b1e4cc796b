"""Pre-training without labels: rebuild the patches that the encoder was not shown."""

import re
from typing import Any

import torch
from torch import Tensor, nn

from pointpeft.backbones.context import Context
from pointpeft.backbones.layers import Block, init_weights
from pointpeft.backbones.point_mae import POS_HIDDEN, PointMAE
from pointpeft.ops import chamfer_distance


class Decoder(nn.Module):
    """Blocks over visible and masked tokens, and a norm."""

    def __init__(
        self, width: int, depth: int, num_heads: int, drop_path: float, *, device: Any = None, dtype: Any = None
    ):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        rates = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(width, num_heads, drop_path=rate, **factory) for rate in rates)
        self.norm = nn.LayerNorm(width, **factory)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """[B, T, C] -> [B, T, C]"""
        for block in self.blocks:
            x = block(x, ctx)
        return self.norm(x)


class MaskedAutoencoder(nn.Module):
    """Hides most patches of a cloud, encodes the others, and rebuilds the hidden ones' points.

    Args:
        backbone: A plain `PointMAE`, trained in place. Its prefix tokens take no part and do not train.
        mask_ratio: Part of the patches that is hidden.
        decoder_depth: Blocks of the decoder, which has the backbone's width and heads.
        embed_hidden: Also embeds the hidden patches, whose tokens are then thrown away, as published: the only effect
            is that BatchNorm's statistics see them. Off, a step costs the part 1 - mask_ratio of the tokenizer.

    Source: Pang et al., "Masked autoencoders for point cloud self-supervised learning", ECCV 2022, §3.
    """

    def __init__(
        self,
        backbone: PointMAE,
        mask_ratio: float = 0.6,
        decoder_depth: int = 4,
        embed_hidden: bool = False,
    ):
        super().__init__()
        config = backbone.config
        self.num_hidden = int(mask_ratio * config.num_groups)
        if not 0 < self.num_hidden < config.num_groups:
            raise ValueError(
                f"mask_ratio must hide at least one and not all of {config.num_groups} patches, got {mask_ratio}"
            )
        parameter = backbone.norm.weight
        factory: dict[str, Any] = {"device": parameter.device, "dtype": parameter.dtype}
        width = config.width
        self.backbone = backbone
        self.embed_hidden = embed_hidden
        self.mask_token = nn.Parameter(torch.empty(1, 1, width, **factory))
        self.decoder_pos_embed = nn.Sequential(
            nn.Linear(3, POS_HIDDEN, **factory), nn.GELU(), nn.Linear(POS_HIDDEN, width, **factory)
        )
        self.decoder = Decoder(width, decoder_depth, config.num_heads, config.drop_path, **factory)
        self.increase_dim = nn.Sequential(nn.Conv1d(width, 3 * config.group_size, 1, **factory))
        for module in (self.decoder_pos_embed, self.decoder, self.increase_dim):
            init_weights(module)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        for name in self._unused():
            backbone.get_parameter(name).requires_grad_(False)

    def _unused(self) -> list[str]:
        return [f"{name}_{suffix}" for name in self.backbone.prefix for suffix in ("token", "pos")]

    def rebuild(self, xyz: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Rebuilt and true points of the hidden patches, M per cloud, relative to their centres. [B, M, S, 3] each"""
        backbone, config = self.backbone, self.backbone.config
        patches, centers = backbone.group(xyz)
        batch, groups = centers.shape[:2]
        device = xyz.device if generator is None else generator.device
        order = torch.rand(batch, groups, generator=generator, device=device).argsort(1).to(xyz.device)
        hidden = order[:, : self.num_hidden].sort(1).values  # [B, M]
        visible = order[:, self.num_hidden :].sort(1).values  # [B, G - M]

        visible_centers = _take(centers, visible)
        if self.embed_hidden:
            x = _take(backbone.patch_embed(patches), visible)
        else:
            x = backbone.patch_embed(_take(patches, visible))
        ctx = Context(xyz, visible_centers, pos=backbone.pos_embed(visible_centers))
        for block in backbone.blocks:
            x = block(x, ctx)
        x = backbone.norm(x)  # [B, G - M, C]

        both = torch.cat([visible_centers, _take(centers, hidden)], 1)
        ctx = Context(xyz, both, pos=self.decoder_pos_embed(both))
        x = torch.cat([x, self.mask_token.expand(batch, self.num_hidden, -1).to(x.dtype)], 1)
        x = self.decoder(x, ctx)[:, -self.num_hidden :]  # [B, M, C]
        points = self.increase_dim(x.transpose(1, 2)).transpose(1, 2)
        return points.reshape(batch, self.num_hidden, config.group_size, 3), _take(patches, hidden)

    def forward(self, xyz: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The loss: squared Chamfer distance between rebuilt and true patches.

        Args:
            xyz: Coordinates. [B, N, 3]
            generator: Of the masks, on any device; None for the default one.

        Returns:
            A scalar.
        """
        rebuilt, true = self.rebuild(xyz, generator)
        return chamfer_distance(rebuilt.flatten(0, 1).float(), true.flatten(0, 1).float(), norm=2)

    def backbone_state_dict(self) -> dict[str, Tensor]:
        """The backbone's tensors that pre-training has trained, by their names in the backbone."""
        unused = self._unused()
        return {name: tensor for name, tensor in self.backbone.state_dict().items() if name not in unused}

    def published_state_dict(self) -> dict[str, Tensor]:
        """All trained tensors by their names in published pre-trainings, which go under `base_model` in a .pth file."""
        names = self._published_names()
        return {names[ours]: tensor for ours, tensor in self.state_dict().items() if ours in names}

    def load_published(self, state: dict[str, Tensor]) -> None:
        """Fills encoder and decoder from a published pre-training.

        Raises:
            ValueError: Names or shapes do not fit.
        """
        names = self._published_names()
        parameters = self.state_dict()
        expected = {theirs: parameters[ours].shape for ours, theirs in names.items()}
        missing, unexpected = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
        wrong = sorted(k for k in set(expected) & set(state) if state[k].shape != expected[k])
        if missing or unexpected or wrong:
            raise ValueError(
                f"state does not fit this autoencoder: missing {missing[:8]}, unexpected {unexpected[:8]}, "
                f"of another shape {wrong[:8]}"
            )
        self.load_state_dict({ours: state[theirs] for ours, theirs in names.items()}, strict=False)

    def _published_names(self) -> dict[str, str]:
        unused = {f"backbone.{name}" for name in self._unused()}
        names = {}
        for ours in self.state_dict():
            if ours in unused:
                continue
            theirs = re.sub(r"^decoder\.", "MAE_decoder.", ours)
            if ours.startswith("backbone."):
                for pattern, replacement in self.backbone.published_renames:
                    theirs = re.sub(pattern, replacement, theirs)
                theirs = f"MAE_encoder.{theirs}"
            names[ours] = theirs
        return names


def _take(x: Tensor, idx: Tensor) -> Tensor:
    """Rows `idx` (B, M) of `x` (B, G, ...), cloud by cloud."""
    return x[torch.arange(x.shape[0], device=x.device)[:, None], idx]
