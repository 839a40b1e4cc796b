"""Clouds coloured by what the adapted model makes of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pointpeft.backbones.layers import Attention
from pointpeft.checkpoints.export import folded
from pointpeft.checkpoints.files import write_atomically
from pointpeft.methods.dapt import DynamicAdapter
from pointpeft.model import PointModel
from pointpeft.ops import interpolate
from pointpeft.training import viewer
from pointpeft.training.run_folder import write_text

DEPTH, CLASS, ATTENTION, SCALE = "depth", "class", "attention", "dynamic scale"
MEANING = {
    DEPTH: "nearer points are lighter",
    CLASS: "the class that the cloud is taken for",
    ATTENTION: "attention of the last block to the patches: of its class token, or of all tokens where it has none; "
    "mean over heads",
    SCALE: "DAPT's scale of each patch token, mean over blocks",
}


@torch.no_grad()
def layers(model: PointModel, xyz: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """What the model looks at, point by point.

    Args:
        model: In evaluation mode; it is left as it is.
        xyz: One cloud. [N, 3]

    Returns:
        Logits [classes], and by name what the model has of `ATTENTION` and `SCALE`, carried over from the patches'
        centres to the points. [N] each
    """
    model = folded(model)
    seen: dict[str, Any] = {"scales": []}
    attn = next(
        (module for module in reversed([*model.backbone.blocks.modules()]) if isinstance(module, Attention)), None
    )
    hooks = [model.backbone.register_forward_hook(lambda module, given, result: seen.update(ctx=result[1]))]
    for module in model.modules():
        if isinstance(module, DynamicAdapter):
            hooks.append(
                module.register_forward_pre_hook(lambda own, given: seen["scales"].append(_scale(own, *given)))
            )
    if attn is not None:
        attend = attn.attend

        def recorded(qkv: Tensor, mask: Tensor | None = None) -> Tensor:
            seen["attention"] = _attention(qkv, mask, attn.num_heads)
            return attend(qkv, mask)

        attn.attend = recorded  # stands before the class's own until it is taken away again
    try:
        logits = model(xyz[None])[0].float().cpu()
    finally:
        for hook in hooks:
            hook.remove()
        if attn is not None:
            del attn.attend
    ctx = seen["ctx"]
    found = {}
    if "attention" in seen:
        table = seen["attention"]  # (1, T, T)
        row = table[0, 0] if ctx.num_prefix else table[0].mean(0)
        found[ATTENTION] = _patches(row, ctx)
    if seen["scales"]:
        found[SCALE] = torch.stack([_patches(scale[0, :, 0], ctx) for scale in seen["scales"]]).mean(0)
    k = min(3, ctx.num_groups)
    spread = {
        name: interpolate(xyz[None].float(), ctx.centers.float(), values[None, :, None], k)[0, :, 0].cpu()
        for name, values in found.items()
    }
    return logits, spread


def _scale(adapter: DynamicAdapter, x: Tensor) -> Tensor:
    """The factor of each token: ReLU(W LN(x) + b). [B, T, C] -> [B, T, 1]"""
    return adapter.scale(adapter.norm(x)).relu().float()


def _attention(qkv: Tensor, mask: Tensor | None, heads: int) -> Tensor:
    """Mean over heads of the attention. [B, T, 3C] -> [B, T, T]"""
    batch, tokens, width = qkv.shape
    q, k, _ = qkv.float().view(batch, tokens, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1).mean(1)


def _patches(row: Tensor, ctx: Any) -> Tensor:
    """The patches' entries of a row over tokens: they stand before the suffix alone. [T] -> [G]"""
    end = row.shape[0] - ctx.num_suffix
    return row[end - ctx.num_groups : end].float()


def card(model: PointModel, xyz: Tensor, names: Sequence[str], title: str, true: str | None = None) -> dict[str, Any]:
    """One cloud for `page` and `picture`: what it is taken for, and its layers. [N, 3]"""
    logits, found = layers(model, xyz)
    probability, predicted = logits.softmax(0).max(0)
    return {
        "name": title,
        "true": true,
        "said": names[int(predicted)],
        "sure": float(probability),
        "xyz": xyz,
        "labels": predicted.expand(len(xyz)),
        "found": found,
    }


def page(cards: Sequence[dict[str, Any]], names: Sequence[str], up_axis: str) -> str:
    """One HTML page without any outside reference: the clouds, and a choice of what colours them."""
    entries = []
    for entry in cards:
        coloured = {CLASS: viewer.classes(entry["labels"], names)}
        coloured |= {name: viewer.amounts(values) for name, values in entry["found"].items()}
        told = {key: entry[key] for key in ("name", "true", "said", "sure")}
        entries.append(told | {"points": viewer.quantised(entry["xyz"]), "layers": coloured})
    known = [DEPTH, *dict.fromkeys(name for entry in entries for name in entry["layers"])]
    meanings = {name: MEANING[name] for name in known}
    # "<" is escaped so that no name of a file or class can end the script element.
    data, told = (json.dumps(value).replace("<", "\\u003c") for value in (entries, meanings))
    return (
        PAGE.replace("@UP@", viewer.up_options(up_axis))
        .replace("@STYLE@", viewer.STYLE)
        .replace("@VIEWER@", viewer.SCRIPT)
        .replace("@MEANINGS@", told)
        .replace("@DATA@", data)
    )


def picture(cards: Sequence[dict[str, Any]], names: Sequence[str], up_axis: str) -> Any:
    """A figure with a row per cloud and a column per layer."""
    from matplotlib.figure import Figure  # no pyplot: it would choose a window system

    columns = [CLASS, *dict.fromkeys(name for entry in cards for name in entry["found"])]
    figure = Figure(figsize=(3.4 * len(columns), 3.4 * len(cards)), layout="constrained")
    order = [0, 1, 2] if up_axis == "z" else [2, 0, 1]
    for i, entry in enumerate(cards):
        for j, name in enumerate(columns):
            axes = figure.add_subplot(len(cards), len(columns), i * len(columns) + j + 1, projection="3d")
            values = entry["labels"] if name == CLASS else entry["found"].get(name)
            style = (
                {"cmap": "tab20", "vmin": 0, "vmax": max(1, len(names) - 1)} if name == CLASS else {"cmap": "viridis"}
            )
            if values is not None:
                axes.scatter(*entry["xyz"][:, order].unbind(1), c=values, s=3, **style)
            axes.set_axis_off()
            axes.set_aspect("equal")
            axes.set_title(
                f"{entry['said']} {entry['sure']:.0%}\n{entry['name']}" if name == CLASS else name, fontsize=8
            )
    return figure


def write(folder: Path, cards: Sequence[dict[str, Any]], names: Sequence[str], up_axis: str) -> tuple[Path, Path]:
    """Writes show.html and show.png into a folder and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "show.html", page(cards, names, up_axis))
    figure = picture(cards, names, up_axis)
    write_atomically(folder / "show.png", lambda path: figure.savefig(path, dpi=120, format="png"))
    return folder / "show.html", folder / "show.png"


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Clouds as the model sees them</title>
<meta name="viewport" content="width=device-width">
<style>
@STYLE@#grid{grid-template-columns:repeat(auto-fill,minmax(340px,1fr))}
</style></head><body>
<h1>Clouds as the model sees them</h1>
<p><label>Colour <select id="layer"></select></label> <label>Up axis <select id="up">@UP@</select></label>
<small>drag to turn, wheel to zoom, double click to reset</small></p>
<p id="meaning"></p>
<div id="grid"></div>
<script>
"use strict";
@VIEWER@
const meanings = @MEANINGS@, choice = document.getElementById("layer"), shown = [];
for (const name of Object.keys(meanings)) text(choice, "option", name);
const clouds = @DATA@;
for (const cloud of clouds) {
  const figure = document.createElement("figure"), canvas = document.createElement("canvas");
  figure.appendChild(canvas);
  const caption = document.createElement("figcaption");
  const right = cloud.true === null || cloud.true === cloud.said;
  text(caption, "span", `${cloud.said} ${(100 * cloud.sure).toFixed(0)}%`, right ? "true" : "said");
  if (!right) text(caption, "span", `, is ${cloud.true}`);
  caption.appendChild(document.createElement("br"));
  text(caption, "small", cloud.name);
  caption.appendChild(document.createElement("br"));
  const range = document.createElement("small");
  caption.appendChild(range);
  figure.appendChild(caption);
  document.getElementById("grid").appendChild(figure);
  for (const layer of Object.values(cloud.layers)) layer.values = decode(layer.values, Uint8Array);
  shown.push([open(canvas, cloud.points), cloud.layers, range]);
}
function choose() {
  document.getElementById("meaning").textContent = meanings[choice.value];
  for (const [view, layers, range] of shown) {
    view.layer = layers[choice.value] || null;
    range.textContent = !view.layer ? "" : view.layer.classes ? Object.keys(view.layer.names).join(", ")
      : `${view.layer.low.toPrecision(3)} to ${view.layer.high.toPrecision(3)}`;
    draw(view);
  }
}
choice.onchange = choose;
choose(); // the grid is as wide as it will be
</script></body></html>
"""
