"""From tokens to one feature vector per cloud."""

import torch
from torch import Tensor, nn

from pointpeft.backbones.context import Context

POOLED_PARTS = ("prompt_mean", "prompt_max", "patch_mean", "patch_max")


class Pool(nn.Module):
    """Puts chosen summaries of the tokens side by side.

    Args:
        parts: Each the name of a prefix token, such as "cls", or one of `POOLED_PARTS`.
        width: C of the tokens.
        prefix: Names of the backbone's prefix tokens.
    """

    def __init__(self, parts: tuple[str, ...], width: int, prefix: tuple[str, ...]):
        super().__init__()
        known = (*prefix, *POOLED_PARTS)
        if not parts or any(part not in known for part in parts):
            raise ValueError(f"head parts must be among {', '.join(known)}, got {parts}")
        self.parts = tuple(parts)
        self.out_dim = width * len(parts)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """Tokens [B, T, C] -> features [B, out_dim]."""
        _, prompts, patches, _ = ctx.split(x)
        features = []
        for part in self.parts:
            if part in ctx.prefix:
                features.append(x[:, ctx.prefix.index(part)])
                continue
            kind, reduce = part.split("_")
            tokens = prompts if kind == "prompt" else patches
            if tokens.shape[1] == 0:
                raise ValueError(f"head part {part!r} needs prompts, but the method inserts none")
            features.append(tokens.mean(1) if reduce == "mean" else tokens.amax(1))
        return torch.cat(features, -1)

    def extra_repr(self) -> str:
        """The parts, for printing."""
        return f"parts={self.parts}, out_dim={self.out_dim}"
