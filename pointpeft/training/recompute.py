"""Activation checkpointing: blocks store only their input for the backward pass and recompute the rest."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pointpeft.backbones.context import Context


def checkpoint_blocks(blocks: nn.ModuleList) -> None:
    """Makes blocks of a backbone recompute their inner values in the backward pass, in place; gradients stay the same.

    Random numbers are repeated, and what a block changes beside its output is changed once: the context of the forward
    pass, and the statistics of BatchNorms.

    Args:
        blocks: Each called as block(x, context).
    """
    for block in blocks:
        block.forward = _recomputing(block, block.forward)


def _recomputing(block: nn.Module, forward: Any) -> Any:
    def recomputing(x: Tensor, ctx: Context) -> Tensor:
        if not (block.training and torch.is_grad_enabled()):
            return forward(x, ctx)
        before, again = _copied(ctx), False

        def run(tokens: Tensor) -> Tensor:
            nonlocal again
            if not again:
                again = True
                return forward(tokens, ctx)
            with _statistics_kept(block):
                return forward(tokens, _copied(before))

        return checkpoint(run, x, use_reentrant=False)

    return recomputing


def _copied(ctx: Context) -> Context:
    """A context that a block can change without changing the other; values in the cache may be lists."""
    cache = {key: copy(value) for key, value in ctx.cache.items() if not isinstance(value, Tensor)}
    copies = {"aux_losses": dict(ctx.aux_losses), "hidden": dict(ctx.hidden), "pooled": dict(ctx.pooled)}
    return replace(ctx, cache={**ctx.cache, **cache}, **copies)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    norms: list[Any] = [
        m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    before = [(norm.momentum, int(norm.num_batches_tracked)) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.fill_(tracked)
