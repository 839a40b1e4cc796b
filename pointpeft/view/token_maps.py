"""What an adapted model does with the patches of one cloud: attention, scales, prompts, dispatch, memory."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pointpeft.backbones.context import Context
from pointpeft.backbones.layers import Attention
from pointpeft.checkpoints.export import folded
from pointpeft.methods.adapters.dapt import DynamicAdapter
from pointpeft.methods.adapters.dyt import DyTBlock
from pointpeft.methods.prompts.point_peft import PointPrior
from pointpeft.model import PointModel
from pointpeft.ops import interpolate

ATTENTION, SCALE, PROMPTS, KEPT = "attention", "dynamic scale", "prompt influence", "kept by DyT"
MEANING = {
    ATTENTION: "attention of the last block to the patches: of its class token, or of all tokens where it has none or "
    "where that one sees no patch, as in PointGPT; mean over heads",
    SCALE: "DAPT's scale of each patch token, mean over blocks",
    PROMPTS: "share of a patch's attention that goes to what the method has put in: prompts, selected tokens, a "
    "learned prefix; mean over heads and over the blocks that have any",
    KEPT: "share of the blocks whose MLP DyT lets the patch pass through",
}
RECALLED = 5  # entries of a memory bank that are told


@dataclass
class Seen:
    """One pass of the model.

    Attributes:
        output: What the model gave for the cloud: [classes], or [N, parts] of its points.
        layers: By name what it has of `MEANING`, carried over from the patches' centres to the points. [N] each
        memory: The columns of Point-PEFT's memory bank that the cloud recalls most, each with its cosine; empty for
            other methods.
    """

    output: Tensor
    layers: dict[str, Tensor]
    memory: list[tuple[int, float]] = field(default_factory=list)


@torch.no_grad()
def look(model: PointModel, xyz: Tensor, **inputs: Tensor) -> Seen:
    """Runs one cloud and writes down what the model does with its patches.

    Args:
        model: In evaluation mode; it is left as it is.
        xyz: One cloud. [N, 3]
        inputs: What the model takes beside it, such as `category`. [1] each
    """
    model = folded(model)
    device = next(model.parameters()).device
    xyz, inputs = xyz.to(device), {name: value.to(device) for name, value in inputs.items()}
    contexts: list[Context] = []
    tables: list[Tensor] = []
    scales: list[Tensor] = []
    masks: list[Tensor] = []
    recalled: list[Tensor] = []
    with ExitStack() as stack:
        hook = model.backbone.register_forward_hook(lambda module, given, result: contexts.append(result[1]))
        stack.callback(hook.remove)
        watch = stack.enter_context
        for module in model.modules():
            if isinstance(module, Attention):
                watch(_watched(module, "attend", lambda given, _, m=module: tables.append(_attention(m, *given))))
                watch(
                    _watched(
                        module,
                        "attend_with_prefix",
                        lambda given, _, m=module: tables.append(_attention(m, given[0], keys=given[1])),
                    )
                )
            elif isinstance(module, DynamicAdapter):
                hook = module.register_forward_pre_hook(lambda own, given: scales.append(_scale(own, *given)))
                stack.callback(hook.remove)
            elif isinstance(module, DyTBlock):
                watch(_watched(module, "choose", lambda given, out: masks.append(out[0, :, 0])))
            elif isinstance(module, PointPrior):
                bank = module.memory_bank
                watch(_watched(module, "retrieve", lambda given, _, m=bank: recalled.append(_cosines(given[0], m))))
        output = model(xyz[None], **inputs)[0].float().cpu()
    ctx = contexts[0]
    found = {}
    if tables:
        first = _patches(tables[-1][0], ctx)  # a causal model's class token sees no patch
        found[ATTENTION] = first if ctx.num_prefix and first.any() else _patches(tables[-1].mean(0), ctx)
        prompted = [table for table in tables if table.shape[1] > ctx.num_prefix + ctx.num_groups]
        if prompted:
            found[PROMPTS] = torch.stack([_to_added(table, ctx) for table in prompted]).mean(0)
    if scales:
        found[SCALE] = torch.stack([_patches(scale, ctx) for scale in scales]).mean(0)
    if masks:
        found[KEPT] = torch.stack([_patches(mask, ctx) for mask in masks]).mean(0)
    k = min(3, ctx.num_groups)
    layers = {
        name: interpolate(xyz[None].float(), ctx.centers.float(), values[None, :, None], k)[0, :, 0].cpu()
        for name, values in found.items()
    }
    memory = []
    if recalled and bool(recalled[0].any()):  # without a bank it is empty or zero
        best = recalled[0].topk(min(RECALLED, recalled[0].numel()))
        memory = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Seen(output, layers, memory)


@contextmanager
def _watched(module: nn.Module, name: str, tell: Any) -> Iterator[None]:
    """Within it, `tell(arguments, result)` hears of every call of a method of `module`."""
    method = getattr(module, name)

    def heard(*given: Any) -> Any:
        result = method(*given)
        tell(given, result)
        return result

    setattr(module, name, heard)  # stands before the class's own until it is taken away again
    try:
        yield
    finally:
        delattr(module, name)


def _scale(adapter: DynamicAdapter, x: Tensor) -> Tensor:
    """The factor of each token of a cloud: ReLU(W LN(x) + b). [1, T, C] -> [T]"""
    return adapter.scale(adapter.norm(x)).relu().float()[0, :, 0]


def _attention(module: Attention, qkv: Tensor, mask: Tensor | None = None, keys: Tensor | None = None) -> Tensor:
    """Mean over heads of the attention of one cloud, to P further keys before those of its tokens.

    Args:
        module: Gives the heads, and which tokens see which.
        qkv: [1, T, 3C]
        mask: bool, [T, T]
        keys: [1, P, C]

    Returns:
        [T, P + T]
    """
    q, k, _ = qkv[0].float().chunk(3, -1)
    if keys is not None:
        k = torch.cat([keys[0].float(), k])
    q, k = (t.unflatten(-1, (module.num_heads, -1)).transpose(0, 1) for t in (q, k))
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    visible = None if keys is not None else module.visible(qkv, mask)
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    return scores.softmax(-1).mean(0)


def _patches(row: Tensor, ctx: Context) -> Tensor:
    """The patches' entries of a row over tokens: they stand before the suffix alone. [T, ...] -> [G, ...]"""
    end = row.shape[0] - ctx.num_suffix
    return row[end - ctx.num_groups : end].float()


def _to_added(table: Tensor, ctx: Context) -> Tensor:
    """The patches' attention to what is neither prefix nor patch. [T, P + T] -> [G]"""
    rows, keys = _patches(table, ctx), table.shape[1] - table.shape[0]
    return (1 - rows[:, keys : keys + ctx.num_prefix].sum(1) - _patches(rows.T, ctx).sum(0)).clamp(min=0)


def _cosines(feature: Tensor, bank: Tensor) -> Tensor:
    """Of a cloud's frozen feature to each column of the bank. [1, C], [C, M] -> [M]"""
    return (nn.functional.normalize(feature, dim=-1) @ bank)[0].float().cpu()
