"""From tokens to one feature vector per cloud."""

import torch
from torch import Tensor, nn

from pointpeft.backbones.context import Context
from pointpeft.heads.dense import NUM_LEVELS
from pointpeft.heads.kernel import Group
from pointpeft.heads.shape_descriptors import NUM_DESCRIPTORS, shape_descriptors

SHAPE_WEIGHT = 0.25  # of the shape descriptors beside tokens, in squared distances
POOLED_PARTS = ("prompt_mean", "prompt_max", "patch_mean", "patch_max", "suffix_mean", "token_max")


class Pool(nn.Module):
    """Puts chosen summaries of the tokens side by side.

    Args:
        parts: Each the name of a prefix token, such as "cls", or one of `POOLED_PARTS`; `token_max` is over prompts
            and patches.
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
        _, prompts, patches, suffix = ctx.split(x)
        features = []
        for part in self.parts:
            if part in ctx.prefix:
                features.append(x[:, ctx.prefix.index(part)])
                continue
            source, reduce = part.split("_")
            rest = x[:, ctx.num_prefix :]
            tokens = {"prompt": prompts, "patch": patches, "suffix": suffix, "token": rest}[source]
            if tokens.shape[1] == 0:
                raise ValueError(f"head part {part!r} needs prompts, but the method inserts none")
            features.append(tokens.mean(1) if reduce == "mean" else tokens.amax(1))
        return torch.cat(features, -1)

    def extra_repr(self) -> str:
        """The parts, for printing."""
        return f"parts={self.parts}, out_dim={self.out_dim}"


class LevelPool(nn.Module):
    """Puts the mean and the maximum of the patch tokens at three depths and the cloud's shape side by side.

    Args:
        width: C of the tokens.
    """

    def __init__(self, width: int):
        super().__init__()
        self.groups = (Group(2 * NUM_LEVELS * width, 1.0), Group(NUM_DESCRIPTORS, SHAPE_WEIGHT))
        self.out_dim = sum(group.size for group in self.groups)

    def forward(self, levels: Tensor, xyz: Tensor) -> Tensor:
        """Tokens [B, G, 3C] and clouds [B, N, 3], y up -> features [B, out_dim]."""
        return torch.cat([levels.mean(1), levels.amax(1), shape_descriptors(xyz).to(levels.dtype)], 1)
