"""Maps of an adapted model's patches for one cloud: attention, scales, prompts, dispatch, memory."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pointpeft.backbones.context import Context
from pointpeft.backbones.layers import Attention
from pointpeft.checkpoints.export import folded
from pointpeft.methods import CallReader, method_class, method_names
from pointpeft.model import PointModel
from pointpeft.ops import interpolate

ATTENTION, PROMPTS = "attention", "prompt influence"
MEANINGS = {
    ATTENTION: "attention of the last block to the patches: of its class token, or of all tokens where it has none or "
    "where that one sees no patch, as in PointGPT; mean over heads",
    PROMPTS: "share of a patch's attention that goes to what the method has put in: prompts, selected tokens, a "
    "learned prefix; mean over heads and over the blocks that have any",
}
NUM_RECALLED = 5  # entries of a memory that are listed


@dataclass
class Observation:
    """One pass of the model.

    Attributes:
        output: What the model gave for the cloud: [classes], or [N, parts] of its points.
        layers: By name, see `meanings`, what it did with the patches, carried over from their centres to the points.
            [N] each
        memory: The entries of the method's memory that the cloud recalls most, each with its similarity; empty for
            methods that have none.
    """

    output: Tensor
    layers: dict[str, Tensor]
    memory: list[tuple[int, float]] = field(default_factory=list)


def meanings() -> dict[str, str]:
    """Meanings of the maps of all registered methods, by name."""
    of_methods = (token_map for name in method_names() for token_map in method_class(name).token_maps)
    return MEANINGS | {token_map.name: token_map.meaning for token_map in of_methods}


@torch.no_grad()
def observe(model: PointModel, xyz: Tensor, **inputs: Tensor) -> Observation:
    """Runs one cloud and records attention and the maps of the method.

    Args:
        model: In evaluation mode; it is left as it is.
        xyz: One cloud. [N, 3]
        inputs: What the model takes beside it, such as `category`. [1] each
    """
    model = folded(model)
    device = next(model.parameters()).device
    xyz, inputs = xyz.to(device), {name: value.to(device) for name, value in inputs.items()}
    contexts: list[Context] = []
    with ExitStack() as stack:
        hook = model.backbone.register_forward_hook(lambda module, arguments, result: contexts.append(result[1]))
        stack.callback(hook.remove)
        tables = _record(stack, model, CallReader(Attention, "attend", lambda m, args, _: _attention(m, *args)))
        tables = _record(
            stack,
            model,
            CallReader(Attention, "attend_with_prefix", lambda m, args, _: _attention(m, args[0], keys=args[1])),
            tables,
        )
        recorded = {token_map: _record(stack, model, token_map) for token_map in model.method.token_maps}
        recall = model.method.recall
        recalled = _record(stack, model, recall) if recall is not None else []
        output = model(xyz[None], **inputs)[0].float().cpu()
    ctx = contexts[0]
    patch_maps = _attention_maps(tables, ctx)
    for token_map, calls in recorded.items():
        if calls:
            patch_maps[token_map.name] = torch.stack([_patches(values, ctx) for values in calls]).mean(0)
    k = min(3, ctx.num_groups)
    maps = {
        name: interpolate(ctx.xyz.float(), ctx.centers.float(), values[None, :, None], k)[0, :, 0].cpu()
        for name, values in patch_maps.items()
    }
    return Observation(output, maps, _most_similar(recalled[0].cpu()) if recalled else [])


def _attention_maps(tables: list[Tensor], ctx: Context) -> dict[str, Tensor]:
    """Averages the attention of each block, [T, P + T], into maps of the patches. [G]"""
    if not tables:
        return {}
    from_class = _patches(tables[-1][0], ctx)  # a causal model's class token sees no patch
    sees_patches = ctx.num_prefix and from_class.any()
    maps = {ATTENTION: from_class if sees_patches else _patches(tables[-1].mean(0), ctx)}
    prompted = [table for table in tables if table.shape[1] > ctx.num_prefix + ctx.num_groups]
    if prompted:
        maps[PROMPTS] = torch.stack([_to_added(table, ctx) for table in prompted]).mean(0)
    return maps


def _most_similar(similarities: Tensor) -> list[tuple[int, float]]:
    """The best entries of a memory; none where it is empty or zero. [M]"""
    if not similarities.any():
        return []
    best = similarities.topk(min(NUM_RECALLED, similarities.numel()))
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def _record(
    stack: ExitStack, model: PointModel, reader: CallReader, values: list[Tensor] | None = None
) -> list[Tensor]:
    """A list of the values that a reader extracts, in the order of the calls, until the stack is closed."""
    values = [] if values is None else values
    for module in model.modules():
        if isinstance(module, reader.module):
            stack.enter_context(_watched(module, reader.call, partial(_append, values, reader, module)))
    return values


def _append(values: list[Tensor], reader: CallReader, module: nn.Module, inputs: tuple[Any, ...], result: Any) -> None:
    values.append(reader.values(module, inputs, result))


@contextmanager
def _watched(module: nn.Module, name: str, callback: Callable[[tuple[Any, ...], Any], None]) -> Iterator[None]:
    """Within it, `callback(arguments, result)` runs after every call of a method of `module`."""
    if name == "forward":  # a hook, which a block sees where it would otherwise compute the module's part itself
        hook = module.register_forward_hook(lambda _, inputs, result: callback(inputs, result))
        try:
            yield
        finally:
            hook.remove()
        return
    method = getattr(module, name)

    def watched(*inputs: Any) -> Any:
        result = method(*inputs)
        callback(inputs, result)
        return result

    setattr(module, name, watched)  # stands before the class's own until it is taken away again
    try:
        yield
    finally:
        delattr(module, name)


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
