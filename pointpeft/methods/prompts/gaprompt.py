"""GAPrompt: prompts among the points and among the tokens, made aware of the shape, and neighbourhoods that mix."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pointpeft.backbones.context import Context
from pointpeft.backbones.layers import Block
from pointpeft.heads.pooling import Pool
from pointpeft.methods.base import Method, factory_kwargs, register_method
from pointpeft.methods.prompts.shift_net import SHAPE, CloudPrompts, halves, kaiming, second_level
from pointpeft.model import PointModel
from pointpeft.ops import aggregate_neighbors, gather, interpolate
from pointpeft.weights.publication import Publication, YamlModel, modelnet_recipe, scanobjectnn_recipes

SHAPE_SHARE = 0.5  # fixed in the published code
CENTER_SHARE = PROPAGATED_SHARE = 0.3
ADAPTER_SHARE = 0.7
PROPAGATED_FROM = 64
SHAPED_BLOCKS = 6  # blocks whose adapter may read the shape
DROPOUT = 0.1
QUIRKS = ("none", "published")


class ShapeAdapter(nn.Module):
    """W_2 Dropout(QuickGELU(W_1 LN(x))) with QuickGELU(x) = x sigmoid(1.702 x).

    Nothing reads `unread`, which counts as trainable in the publication.
    """

    def __init__(self, width: int, rank: int, factory: dict[str, Any]):
        super().__init__()
        self.norm = nn.LayerNorm(width, **factory)
        self.unread = nn.Linear(width, 1, **factory)
        self.down = nn.Linear(width, rank, **factory)
        self.up = nn.Linear(rank, width, **factory)
        self.dropout = nn.Dropout(DROPOUT)
        kaiming(self, bias_std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]"""
        h = self.down(self.norm(x))
        return self.up(self.dropout(h * torch.sigmoid(1.702 * h)))


class GAPromptBlock(Block):
    """A frozen block with prompts, neighbourhoods that mix behind its MLP, and an adapter behind both."""

    def __init__(self, block: Block, method: "GAPrompt", shared: CloudPrompts, config: Any, index: int):
        self.adopt(block)
        width, factory = block.width, factory_kwargs(block)
        self._shared = (shared,)  # in a tuple, so that the shared module has one name only
        self.prompted, self.shaped = index < method.prompt_depth, index < min(method.prompt_depth, SHAPED_BLOCKS)
        self.published = method.quirks == "published"
        self.level = (*halves(config), config.min_sq_norm)
        self.prompt_embeddings = nn.Parameter(torch.zeros(method.num_prompts, width, **factory))
        self.prompt_dropout = nn.Dropout(DROPOUT)
        self.adapter = ShapeAdapter(width, method.rank, factory)
        self.out_transform = nn.Sequential(nn.BatchNorm1d(width, **factory), nn.GELU())
        if self.published:  # no forward reads them, but files hold them
            for name in ("scaler1", "scaler2"):
                half = torch.full((1,), SHAPE_SHARE, **factory)
                self.register_parameter(name, nn.Parameter(half, requires_grad=False))

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """[B, T, C] -> [B, T, C]: the prompts live within the block."""
        shape, prefix = ctx.cache[SHAPE], ctx.num_prefix
        x = ctx.add_pos(x)
        if self.prompted:
            prompts = self.prompt_dropout(self.prompt_embeddings.expand(x.shape[0], -1, -1))
            prompts = prompts + SHAPE_SHARE * shape + self._shared[0].prompt_pos()
            x = torch.cat([x[:, :prefix], prompts, x[:, prefix:]], 1)
        u = self.norm1(x)
        x = self.drop_path.added(self.attention_skip(x, u, ctx), self.attn(u))
        skip, u = self.mlp_inputs(x)
        x = self.drop_path.added(skip, self.mlp(u))

        first, rest = x[:, :prefix], x[:, prefix:]
        rest = torch.cat([rest[:, : -ctx.num_groups], self.propagated(rest, ctx)], 1)
        rest = rest + ADAPTER_SHARE * self.adapter(rest + SHAPE_SHARE * shape if self.shaped else rest)
        return torch.cat([first, rest[:, -ctx.num_groups :]], 1)

    def propagated(self, rest: Tensor, ctx: Context) -> Tensor:
        """Patch tokens with what their neighbourhoods carry to them; prompts and patches [B, P + G, C] -> [B, G, C]

        The maximum m_j of each neighbourhood comes twice, once with stochastic depth; v_j = GELU(BN(m_j)) + 0.3 x_j
        with its centre x_j, and x_i + 0.3 times the mean of the v_j weighted by inverse squared distance.
        """
        idx, centers, where = ctx.cached("gaprompt.near", lambda: second_level(ctx.centers, *self.level))
        patches = rest[:, -ctx.num_groups :]
        if self.published:  # rows of the batch by the stride of G, where there are P + G
            rows = rest.flatten(0, 1)
            start = ctx.num_groups * torch.arange(len(rest), device=idx.device)
            top, at_center = rows[idx + start[:, None, None]].max(2).values, rows[where + start[:, None]]
        else:
            top, at_center = aggregate_neighbors(patches, idx, "max"), gather(patches, where)
        flat = top.flatten(0, 1)  # one draw of stochastic depth for each neighbourhood
        top = self.drop_path.added(flat, flat).view_as(top)
        v = self.out_transform(top.transpose(1, 2)).transpose(1, 2) + CENTER_SHARE * at_center
        carried = interpolate(ctx.centers, centers, v, min(PROPAGATED_FROM, centers.shape[1]))
        return patches + PROPAGATED_SHARE * carried.to(patches.dtype)


class ShapePool(nn.Module):
    """What `Pool` makes of the tokens, and the code of the shape."""

    def __init__(self, width: int, prefix: tuple[str, ...]):
        super().__init__()
        self.tokens = Pool(("cls" if "cls" in prefix else "patch_mean", "patch_max"), width, prefix)
        self.out_dim = self.tokens.out_dim + width

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """[B, T, C] -> [B, 3C]"""
        return torch.cat([self.tokens(x, ctx), ctx.cache[SHAPE][:, 0]], -1)


_CONFIGS = "zhoujiahuan1991/ICML2025-GAPrompt cfgs/gaprompt_{}.yaml"
_FIXED = {  # keys of YAML files of which one value is computed here
    "if_half": False,
    "adapter_config": {"adapter_dim": 16, "adapter_drop_path_rate": 0.1},
    "point_prompt": True,
    "shift_net": True,
    "scaler": False,
    "propagation_type": "permutation_after_attention",
}
_OPTIONS = {
    "point_prompts": 5,
    "point_scale": 0.01,
    "point_factor": 5,
    "perturbation": 0.8,
    "prompt_depth": 6,
    "num_prompts": 10,
}


@register_method
@dataclass(frozen=True)
class GAPrompt(Method):
    """Geometry-aware point cloud prompt.

    A small network shifts the points and tells a code of the shape; learned points join the cloud. Blocks have token
    prompts at learned places, which know the shape, as do the adapters; behind each block neighbouring patches mix. As
    published, the start is not the plain backbone, and the head reads the class token, the maximum over patches and the
    shape. The shape's code is made for one number of patches, and depends on the order of the farthest points.

    What the released code does otherwise, which `quirks="published"` repeats: neighbourhoods of prompted blocks index
    the rows of a batch with the stride of G rows where there are P + G, so that a cloud reads tokens of others and
    prompts: its logits depend on the batch.

    In both modes there is, as there: a neighbourhood's maximum counted twice; prompts in blocks from `prompt_depth` on,
    which nothing reads; a map of each adapter that nothing reads (`unread`). Of the released ways in which patches mix
    only `permutation_after_attention` is here.

    Attributes:
        point_prompts: Points that join the cloud.
        point_scale: They are drawn uniformly up to it in each coordinate ...
        point_factor: ... and multiplied by it.
        perturbation: ε, share of the shift; published are 0.8 for PB_T50_RS and 0.05 for ModelNet40.
        prompt_depth: How many blocks, from the first, have prompts.
        num_prompts: P, the token prompts of a block.
        rank: Of the adapters.
        quirks: "none", or "published" for what the released code computes.

    Source: Ai et al., "GAPrompt: geometry-aware point cloud prompt for 3D vision model", ICML 2025, and its code.
    """

    point_prompts: int = 5
    point_scale: float = 0.01
    point_factor: float = 5.0
    perturbation: float = 0.8
    prompt_depth: int = 6
    num_prompts: int = 10
    rank: int = 16
    quirks: str = "none"

    needs = ("blocks", "cloud_transform", "pos_embed")
    trains = (r"^backbone\.(cls_token|cls_pos)$",)
    head_options = {"dropout": 0.6}
    publication = Publication(
        models=(YamlModel("PointTransformer_pointtokenprompt", keys=tuple(_FIXED)),),
        options={
            "point_number": "point_prompts",
            "scale": "point_scale",
            "factor": "point_factor",
            "perturbation": "perturbation",
            "prompt_depth": "prompt_depth",
            "num_tokens": "num_prompts",
        },
        fixed_defects=("neighbours are gathered within a cloud; published from other clouds of the batch",),
        recipes=(
            *scanobjectnn_recipes(
                _CONFIGS,
                "scale_translate",
                {
                    "scanobjectnn_hardest": {"method_options": _OPTIONS},
                    "scanobjectnn_objonly": {"method_options": _OPTIONS | {"point_prompts": 10, "perturbation": 0.1}},
                },
            ),
            modelnet_recipe(_CONFIGS.format("modelnet"), epochs=400, method_options=_OPTIONS | {"perturbation": 0.05}),
        ),
        markers=("shape_feature_mlp.",),
        renames=(
            (r"^cloud_transform\.points$", "point_prompt.points"),
            (r"^cloud_transform\.prompt_xyz$", "prompt_cor"),
            (r"^cloud_transform\.shape\.", "shape_feature_mlp."),
            (r"^cloud_transform\.shift\.abstraction", "shift_net.abstraction_level"),
            (r"^cloud_transform\.shift\.position\.", "shift_net.mlp_position."),
            (r"^cloud_transform\.shift\.", "shift_net."),
            (r"^(shift_net\.\w+)\.convs\.", r"\1.mlp_convs."),
            (r"^(shift_net\.\w+)\.norms\.", r"\1.mlp_bns."),
            (r"\.adapter\.unread\.", ".adapter.scale."),
            (r"\.adapter\.norm\.", ".adapter.layer_norm."),
            (r"\.adapter\.down\.", ".adapter.ln1."),
            (r"\.adapter\.up\.", ".adapter.ln2."),
        ),
    )

    def __post_init__(self) -> None:
        if self.quirks not in QUIRKS:
            raise ValueError(f"quirks must be one of {', '.join(QUIRKS)}, got {self.quirks!r}")
        for name, minimum in (("point_prompts", 1), ("prompt_depth", 0), ("num_prompts", 1), ("rank", 1)):
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {getattr(self, name)}")
        for name in ("point_scale", "point_factor", "perturbation"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")

    @classmethod
    def yaml_options(cls, section: Mapping[str, Any]) -> dict[str, Any]:
        """Our options from the `model:` section of a published YAML file.

        Raises:
            ValueError: A key asks for something that this method is not.
        """
        for key, value in _FIXED.items():
            if section.get(key, value) != value:
                raise ValueError(f"model.{key} must be {value}, got {section[key]!r}")
        return super().yaml_options(section)

    @classmethod
    def published_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Our options for published weights."""
        return {"quirks": "published", **cls.yaml_options(config)}

    def is_dead(self, name: str) -> bool:
        """Whether a parameter counts as trainable in the publication but gets no gradient."""
        late = re.search(r"\.blocks\.(\d+)\.prompt_embeddings$", name)
        return ".adapter.unread." in name or (late is not None and int(late[1]) >= self.prompt_depth)

    def build(self, model: PointModel) -> None:
        """Puts the network before the groups, and the prompts and adapters into the blocks."""
        backbone = model.backbone
        backbone.cloud_transform = CloudPrompts(self, backbone)
        for i, block in enumerate(backbone.blocks):
            backbone.blocks[i] = GAPromptBlock(block, self, backbone.cloud_transform, backbone.config, i)
        if not model.dense:
            model.set_pooling(ShapePool(backbone.config.width, backbone.prefix))
