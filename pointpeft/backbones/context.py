"""State shared by the blocks of one forward pass: the cloud, its groups, the layout of tokens, positions, losses."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Context:
    """Facts of one forward pass; made by the backbone, read and changed by blocks and methods.

    The tokens always stand in the order prefix, prompts, patches, suffix. `insert_prompts` and `append_suffix` change
    the tokens, the positions and the counts together, so that `split` stays right.

    Attributes:
        xyz: The cloud as it was given. [B, N, 3]
        centers: Centre of each group. [B, G, 3]
        prefix: Names of the tokens before all others, such as ("cls",).
        num_prompts: Tokens that a method has put after the prefix.
        num_suffix: Tokens that a method has put after the patches.
        pos: What each block adds to its input; None once it has been added for good. [B, T, C]
        inputs: Further inputs of the model's call, by name.
        aux_losses: Losses that a block adds to the task's, by name.
        cache: Results that blocks share; use `cached`.
        taps: Which block outputs to keep, by block index.
        hidden: Patch tokens after the blocks named in `taps`. [B, G, C] each
        whole: What a dense head reads of the whole cloud beside them, where the backbone has it. [B, C]
        pooled: Two tokens after blocks named in `taps` that a method puts instead of the maximum and the mean over
            the patches there. [B, 1, C] each
        attended: What the attention of the last block has read, for a branch beside the blocks. [B, T, C]
    """

    xyz: Tensor
    centers: Tensor
    prefix: tuple[str, ...] = ()
    num_prompts: int = 0
    num_suffix: int = 0
    pos: Tensor | None = None
    inputs: dict[str, Tensor] = field(default_factory=dict)
    aux_losses: dict[str, Tensor] = field(default_factory=dict)
    cache: dict[Any, Any] = field(default_factory=dict)
    taps: tuple[int, ...] = ()
    hidden: dict[int, Tensor] = field(default_factory=dict)
    whole: Tensor | None = None
    pooled: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    attended: Tensor | None = None

    @property
    def num_prefix(self) -> int:
        """Tokens before all others."""
        return len(self.prefix)

    @property
    def num_groups(self) -> int:
        """G, how many patches there are."""
        return self.centers.shape[1]

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens (or positions) as (prefix, prompts, patches, suffix), views of `x`. [B, T, C]"""
        prefix, prompts, patches, suffix = x.split(
            [self.num_prefix, self.num_prompts, self.num_groups, self.num_suffix], dim=1
        )
        return prefix, prompts, patches, suffix

    @property
    def patch_pos(self) -> Tensor:
        """The patches' part of the positions. [B or 1, G, C]

        Raises:
            ValueError: They have been added to the tokens for good.
        """
        if self.pos is None:
            raise ValueError("the positions have been added to the tokens and are no longer apart")
        return self.split(self.pos)[2]

    def add_pos(self, x: Tensor) -> Tensor:
        """`x` plus the positions; `x` itself where they have been added for good. [B, T, C]"""
        return x if self.pos is None else x + self.pos

    def insert_prompts(self, x: Tensor, prompts: Tensor, pos: Tensor | None = None) -> Tensor:
        """Puts `prompts` right after the prefix, before older prompts.

        Args:
            x: Tokens. [B, T, C]
            prompts: [B, P, C]
            pos: Their positions, zero where None. [B or 1, P, C]

        Returns:
            Tokens. [B, T + P, C]
        """
        if self.pos is not None:
            self.pos = _insert(self.pos, torch.zeros_like(prompts) if pos is None else pos, self.num_prefix)
        self.num_prompts += prompts.shape[1]
        return _insert(x, prompts, self.num_prefix)

    def drop_prompts(self, x: Tensor) -> Tensor:
        """Takes all prompts out, and their positions. [B, T, C] -> [B, T - P, C]"""
        if self.pos is not None:
            prefix, _, patches, suffix = self.split(self.pos)
            self.pos = torch.cat([prefix, patches, suffix], 1)
        prefix, _, patches, suffix = self.split(x)
        self.num_prompts = 0
        return torch.cat([prefix, patches, suffix], 1)

    def append_suffix(self, x: Tensor, tokens: Tensor, pos: Tensor | None = None) -> Tensor:
        """Puts `tokens` behind the patches; arguments and result as in `insert_prompts`."""
        if self.pos is not None:
            self.pos = _insert(self.pos, torch.zeros_like(tokens) if pos is None else pos, self.pos.shape[1])
        self.num_suffix += tokens.shape[1]
        return _insert(x, tokens, x.shape[1])

    def drop_suffix(self, x: Tensor) -> Tensor:
        """Takes all tokens behind the patches out, and their positions. [B, T, C] -> [B, T - P, C]"""
        length = x.shape[1] - self.num_suffix
        self.num_suffix = 0
        if self.pos is not None:
            self.pos = self.pos[:, :length]
        return x[:, :length]

    def cached(self, key: Any, compute: Callable[[], Any]) -> Any:
        """The value under `key`, computed by the first block that asks: neighbour indices, spectral bases."""
        if key not in self.cache:
            self.cache[key] = compute()
        return self.cache[key]


def _insert(x: Tensor, tokens: Tensor, position: int) -> Tensor:
    before, behind = x.split(
        [position, x.shape[1] - position], 1
    )  # one pass in the backward, where two slices fill x with zeros
    return torch.cat([before, tokens.expand(x.shape[0], -1, -1).to(x.dtype), behind], 1)
