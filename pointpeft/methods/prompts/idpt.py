"""IDPT: one prompt per cloud, generated from its own patch tokens by a graph network in feature space."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pointpeft.backbones.context import Context
from pointpeft.backbones.edge_conv import conv, edge_conv, project
from pointpeft.backbones.layers import Block
from pointpeft.methods.base import Method, factory_kwargs, register_method
from pointpeft.model import PointModel
from pointpeft.ops import knn
from pointpeft.weights.publication import Publication, YamlModel, modelnet_recipe, scanobjectnn_recipes

HEADS = {
    "all": ("cls", "prompt_mean", "patch_max"),
    "promptcls": ("cls", "prompt_mean"),
    "pointcls": ("cls", "patch_max"),
    "promptonly": ("prompt_mean",),
}
"""Inputs of the head by their published names; the mean over the only prompt is that prompt."""
EDGE_CONVS = {"dgcnn": 3, "dgcnn_light2": 2, "dgcnn_light": 1}
GENERATORS = (*EDGE_CONVS, "mlp", "transformer")


class EdgeConvPrompt(nn.Module):
    """x_l = max_j LeakyReLU(BN(W_l [x_j - x_i ; x_i])) over neighbours j in feature space; prompt = max_i of all x_l.

    Source: Zha et al., "Instance-aware dynamic prompt tuning for pre-trained point cloud models", ICCV 2023; Wang et
    al., "Dynamic graph CNN for learning on point clouds", 2019, Eqs. 7-8.
    """

    def __init__(self, width: int, stages: int, k: int, factory: dict[str, Any]):
        super().__init__()
        self.stages, self.k = stages, k
        for i in range(1, stages + 1):
            norm = nn.BatchNorm1d(width, **factory)
            self.add_module(f"conv{i}", conv(norm, 2 * width, 2, factory))
        last = conv(nn.BatchNorm1d(width, **factory), stages * width, 1, factory)
        if stages > 1:
            self.conv5 = last
        else:  # another name, since published files hold another norm as bn5
            self.last, self.unread = last, nn.BatchNorm1d(width, **factory)

    def forward(self, x: Tensor, pos: Tensor | None) -> Tensor:
        """Patch tokens -> prompt; positions take no part. [B, G, C] -> [B, 1, C]"""
        features = []
        for i in range(1, self.stages + 1):
            idx = knn(x.detach(), x.detach(), min(self.k, x.shape[1]))[1]  # [B, G, K], the patch itself among them
            x = edge_conv(getattr(self, f"conv{i}"), x, idx)
            features.append(x)
        last = self.conv5 if self.stages > 1 else self.last
        return project(last, torch.cat(features, -1)).amax(1, keepdim=True)


class MlpPrompt(nn.Module):
    """prompt = max_i LeakyReLU(BN(W x_i))."""

    def __init__(self, width: int, factory: dict[str, Any]):
        super().__init__()
        self.last = conv(nn.BatchNorm1d(width, **factory), width, 1, factory)
        self.unread = nn.BatchNorm1d(width, **factory)

    def forward(self, x: Tensor, pos: Tensor | None) -> Tensor:
        """Patch tokens -> prompt; positions take no part. [B, G, C] -> [B, 1, C]"""
        return project(self.last, x).amax(1, keepdim=True)


class TransformerPrompt(nn.Module):
    """prompt = max_i of one transformer block on the patch tokens and their positions."""

    def __init__(self, width: int, num_heads: int, factory: dict[str, Any]):
        super().__init__()
        self.block = Block(width, num_heads, **factory)

    def forward(self, x: Tensor, pos: Tensor | None) -> Tensor:
        """Patch tokens and their positions -> prompt. [B, G, C] -> [B, 1, C]"""
        return self.block(x, Context(x, x, pos=pos)).amax(1, keepdim=True)


class PromptedBlock(nn.Module):
    """A frozen block of any kind that gets a generated prompt among its tokens, with a fixed random position."""

    def __init__(self, block: nn.Module, generator: nn.Module, width: int):
        super().__init__()
        self.block = block
        self.generator = generator
        self.prompt_pos = nn.Parameter(torch.empty(1, 1, width, **factory_kwargs(block)), requires_grad=False)
        nn.init.trunc_normal_(self.prompt_pos, std=0.02)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """[B, T, C] -> [B, T + 1, C]: the prompt stands behind the prefix from here on."""
        pos = None if ctx.pos is None else ctx.split(ctx.pos)[2]
        prompt = self.generator(ctx.split(x)[2], pos)
        return self.block(ctx.insert_prompts(x, prompt, self.prompt_pos), ctx)


class SummarisedBlock(nn.Module):
    """A frozen block whose output a dense head reads: a prompt is generated for it, and leaves with it.

    The prompt as it enters and as it leaves the block is what the head reads instead of the maximum and the mean
    over the patches. All such blocks of a model share one trained position, the first one's `summary_pos`.
    """

    def __init__(self, block: nn.Module, index: int, summary: nn.Module, width: int, *, first: bool):
        super().__init__()
        self.block, self.index, self.summary = block, index, summary
        self.summary_pos: nn.Parameter | None = None
        if first:
            self.summary_pos = nn.Parameter(torch.empty(1, 1, width, **factory_kwargs(block)))
            nn.init.trunc_normal_(self.summary_pos, std=0.02)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """[B, T, C] -> [B, T, C]"""
        shared = ctx.cached("summary_pos", lambda: self.summary_pos)
        entering = self.summary(ctx.split(x)[2], None if ctx.pos is None else ctx.patch_pos)
        x = self.block(ctx.insert_prompts(x, entering, shared), ctx)
        ctx.pooled[self.index] = (entering, ctx.split(x)[1])
        return ctx.drop_prompts(x)


_CONFIGS = "zyh16143998882/ICCV23-IDPT cfgs/"
_EDGES = {"prompt_layer": 11, "generator": "dgcnn", "head": "all"}
PUBLICATION = Publication(
    models=(
        YamlModel(
            "PointTransformer",
            is_shown_by=lambda section: "prompt_module" in section or "prompt_layer" in section,
            augment="rotate",
        ),
    ),
    options={"prompt_layer": "prompt_layer", "prompt_module": "generator", "cls_type": "head"},
    optimizer_parts=("only_new",),
    recipes=(
        *scanobjectnn_recipes(
            _CONFIGS + "finetune_{}_idpt.yaml",
            "rotate",
            {
                "scanobjectnn_hardest": {},
                "scanobjectnn_objbg": {"method_options": _EDGES | {"head": "promptonly"}},
                "scanobjectnn_objonly": {"method_options": _EDGES | {"prompt_layer": 6}},
            },
            method_options=_EDGES,
        ),
        modelnet_recipe(_CONFIGS + "finetune_modelnet_idpt.yaml", method_options=_EDGES),
        modelnet_recipe(_CONFIGS + "fewshot_idpt.yaml", "fewshot", method_options=_EDGES),
    ),
    markers=("blocks.cls.", "blocks.dgcnn_cls"),
    renames=(
        (r"^blocks\.blocks\.\d+\.prompt_pos$", "prompt_pos"),
        (r"^blocks\.blocks\.\d+\.generator\.block\.", "blocks.cls.blocks.blocks.0."),
        (r"^blocks\.blocks\.\d+\.generator\.unread\.", "blocks.cls.bn5."),
        (r"^blocks\.blocks\.\d+\.generator\.last\.", "blocks.cls.conv5."),
        (r"^blocks\.blocks\.\d+\.generator\.conv(\d)\.1\.", r"blocks.cls.bn\1."),
        (r"^blocks\.blocks\.\d+\.generator\.", "blocks.cls."),
        (r"^blocks\.blocks\.\d+\.summary_pos$", "prompt_cls_pos"),
        (r"^blocks\.blocks\.(\d+)\.summary\.unread\.", r"blocks.dgcnn_cls\1.bn5."),
        (r"^blocks\.blocks\.(\d+)\.summary\.last\.", r"blocks.dgcnn_cls\1.conv5."),
        (r"^(blocks\.blocks\.\d+)\.block\.", r"\1."),
        (r"^(label_conv|propagation_0|convs\d|bns\d)\.", r"\1_cls."),
    ),
    copies=((r"^blocks\.cls\.bn(\d)\.", r"blocks.cls.conv\1.1."),),
)


@register_method
@dataclass(frozen=True)
class IDPT(Method):
    """Instance-aware dynamic prompt: made from the tokens that enter one block, among the tokens from there on.

    Its position is drawn once and never trained, as in the publication (whose optimiser does not name it); adapters on
    disk hold it. The publication leaves gradients of the frozen backbone on, which costs memory and changes nothing;
    here they are off. Published files hold the generator's norms twice, under two names. The published mlp and
    dgcnn_light have one norm more that nothing reads (`unread`); it is here because it counts as trainable there.

    Where points are classified it is the published part segmentation's other form, for scenes too: before each of the
    three blocks whose outputs the head reads stands a generator of its own, and the three prompts, before and behind
    their blocks, take the place of the maximum and the mean over patches in the head. Point-BERT's head has no such
    place, and reads them by way of the patches alone.

    Attributes:
        prompt_layer: Before which block; -1 is the last. For clouds alone.
        generator: dgcnn (three edge convolutions), dgcnn_light2 (two), dgcnn_light (one), mlp or transformer. None is
            the published one: dgcnn for clouds, mlp for points.
        head: What the head reads: all (class token, prompt, maximum over patches), promptcls (class token, prompt),
            pointcls (class token, maximum over patches) or promptonly. For clouds alone.
        k: Neighbours of a patch in feature space, itself among them; where a cloud has fewer patches, all of them.

    Source: Zha et al., "Instance-aware dynamic prompt tuning for pre-trained point cloud models", ICCV 2023.
    """

    prompt_layer: int = -1
    generator: str | None = None
    head: str = "all"
    k: int = 20

    trains = (r"^backbone\.(cls_token|cls_pos)$",)
    dead = (r"\.(generator|summary)\.unread\.",)
    publication = PUBLICATION

    def __post_init__(self) -> None:
        if self.generator is not None and self.generator not in GENERATORS:
            raise ValueError(f"generator must be one of {', '.join(GENERATORS)}, got {self.generator!r}")
        if self.head not in HEADS:
            raise ValueError(f"head must be one of {', '.join(HEADS)}, got {self.head!r}")
        if self.k < 1:
            raise ValueError(f"k must be at least 1, got {self.k}")

    def build(self, model: PointModel) -> None:
        """Puts the generators before their blocks and changes what the head reads."""
        backbone = model.backbone
        blocks, width = backbone.blocks, backbone.config.width
        if model.dense:
            if (self.prompt_layer, self.head) != (-1, "all"):
                raise ValueError(
                    "prompt_layer and head must be -1 and all where points are classified, whose head has prompts "
                    f"before three blocks, got {self.prompt_layer} and {self.head}"
                )
            taps = sorted(set(model.taps))
            for i in taps:
                blocks[i] = SummarisedBlock(blocks[i], i, self.make(model, "mlp"), width, first=i == taps[0])
            return
        if not -len(blocks) <= self.prompt_layer < len(blocks):
            raise ValueError(f"prompt_layer must be below the depth {len(blocks)}, got {self.prompt_layer}")
        blocks[self.prompt_layer] = PromptedBlock(blocks[self.prompt_layer], self.make(model, "dgcnn"), width)
        model.set_pooling(HEADS[self.head])

    def make(self, model: PointModel, published: str) -> nn.Module:
        """A generator of the chosen kind, or of the published one where none is chosen."""
        config, factory, generator = model.backbone.config, factory_kwargs(model.backbone), self.generator or published
        if generator in EDGE_CONVS:
            return EdgeConvPrompt(config.width, EDGE_CONVS[generator], self.k, factory)
        return (
            MlpPrompt(config.width, factory)
            if generator == "mlp"
            else TransformerPrompt(config.width, config.num_heads, factory)
        )
