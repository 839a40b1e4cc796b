"""PPT: a second grouping of the cloud as prompts with positions, moved by small networks that all blocks share."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pointpeft.backbones.context import Context
from pointpeft.backbones.layers import Block
from pointpeft.methods.base import Method, factory_kwargs, register_method
from pointpeft.model import PointModel
from pointpeft.weights.publication import Publication, YamlModel, modelnet_recipe, scanobjectnn_recipes


def bottleneck(width: int, rank: int, factory: dict[str, Any]) -> nn.Sequential:
    """M(x) = W_2 GELU(W_1 x), which does not start as zero."""
    down, up = nn.Linear(width, rank, **factory), nn.Linear(rank, width, **factory)
    for layer in (down, up):
        nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(down, nn.GELU(), up)


class PositionalPrompts(nn.Module):
    """Shared by all blocks: the second grouping, and the networks of the patches, of the prompts and of all tokens."""

    def __init__(self, method: "PPT", backbone: Any):
        super().__init__()
        width, factory = backbone.config.width, factory_kwargs(backbone)
        self.num_groups, self.group_size = method.num_prompts, method.prompt_size
        self.before_patches = not backbone.blocks[0].attn.sees_all  # patches see what stands before them alone
        self.patches = bottleneck(width, method.rank, factory)
        self.prompts = bottleneck(width, method.rank, factory)
        self.tokens = bottleneck(width, method.rank, factory)
        self._backbone = (backbone,)  # in a tuple, so that its modules have one name only

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """Puts tokens and positions of the second grouping before or behind the patches. [B, T, C] -> [B, T + P, C]

        Raises:
            ValueError: The clouds have too few points for it.
        """
        backbone = self._backbone[0]
        needed = max(self.num_groups, self.group_size)
        if ctx.xyz.shape[1] < needed:
            raise ValueError(
                f"xyz must have at least {needed} points per cloud (num_prompts = {self.num_groups}, "
                f"prompt_size = {self.group_size}), got N = {ctx.xyz.shape[1]}"
            )
        patches, centers = backbone.group(ctx.xyz, self.num_groups, self.group_size)
        tokens, pos = backbone.patch_transform(backbone.patch_embed(patches)), backbone.pos_embed(centers)
        return (ctx.insert_prompts if self.before_patches else ctx.append_suffix)(x, tokens, pos)


class PPTBlock(Block):
    """A frozen block whose patches and prompts are moved as they enter, and all tokens beside its MLP.

    z = x + pos; z_patch += M_patch(z_patch); z_prompt += M_prompt(z_prompt); y = z + Attn(LN z);
    y + MLP(LN y) + M_all(y).
    """

    def __init__(self, block: Block, shared: PositionalPrompts):
        self.adopt(block)
        self._shared = (shared,)  # in a tuple, so that the shared module has one name only

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """[B, T, C] -> [B, T, C]"""
        shared = self._shared[0]
        prefix, prompts, patches, suffix = ctx.split(ctx.add_pos(x))
        if shared.before_patches:
            prompts = prompts + shared.prompts(prompts)
        else:
            suffix = suffix + shared.prompts(suffix)
        x = torch.cat([prefix, prompts, patches + shared.patches(patches), suffix], 1)
        u = self.norm1(x)
        y = self.drop_path.added(self.attention_skip(x, u, ctx), self.attn(u))
        skip, u = self.mlp_inputs(y)
        return self.drop_path.added(skip, self.mlp(u)) + shared.tokens(y)


_CONFIGS = "zsc000722/PPT cfgs/pointmae_configs/"


@register_method
@dataclass(frozen=True)
class PPT(Method):
    """Positional prompt tuning.

    The cloud is grouped a second time; the tokens of these groups, by the backbone's tokenizer, and the positions of
    their centres are prompts. Three networks of one bottleneck, shared by all blocks, move the patches, the prompts and
    all tokens. The position embedding and the first half of the tokenizer train. As published, the start is not
    the plain backbone, and the head reads the class token and the means over patches and over prompts, with GELU.

    Prompts stand behind the patches; where tokens see only those before them, as in PointGPT, behind the prefix.

    Attributes:
        num_prompts: P, groups of the second grouping; 0 for as many as the backbone has patches. Published are 128 for
            ScanObjectNN, and 64 for ModelNet40.
        prompt_size: Points of each of them; 0 for the backbone's group size. Published are 32.
        rank: R of the three networks.

    Source: Zhang et al., "Positional prompt tuning for efficient 3D representation learning", 2024, and its code.
    """

    num_prompts: int = 0
    prompt_size: int = 0
    rank: int = 256

    needs = ("blocks", "patch_embed", "patch_transform", "pos_embed", "entry_transform")
    trains = (r"^backbone\.(cls_token|cls_pos)$", r"^backbone\.pos_embed\.", r"^backbone\.patch_embed\.first_conv\.")
    head_options = {"activation": "gelu"}
    publication = Publication(
        models=(
            YamlModel(
                "PointTransformer",
                keys=("type",),
                is_shown_by=lambda section: "prompt_num_group" in section,
                augment="rotate",
            ),
        ),
        options={"prompt_num_group": "num_prompts", "prompt_group_size": "prompt_size"},
        recipes=(
            *scanobjectnn_recipes(
                _CONFIGS + "finetune_{}.yaml",
                "rotate",
                {"scanobjectnn_hardest": {"method_options": {"num_prompts": 128, "prompt_size": 32}}},
                drop_path=0.3,
            ),
            modelnet_recipe(
                _CONFIGS + "finetune_modelnet_8k.yaml",
                "modelnet_8k",
                num_groups=512,
                num_points=8192,
                drop_path=0.3,
                lr=1e-4,
                batch_size=22,
                method_options={"num_prompts": 64, "prompt_size": 32},
            ),
        ),
        markers=("blocks.prompt_all_mlp.",),
        renames=(
            (r"^entry_transform\.patches\.", "blocks.prompt_mlp."),
            (r"^entry_transform\.prompts\.", "blocks.prompt_pos_mlp."),
            (r"^entry_transform\.tokens\.", "blocks.prompt_all_mlp."),
        ),
    )

    def __post_init__(self) -> None:
        for name, minimum in (("num_prompts", 0), ("prompt_size", 0), ("rank", 1)):
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {getattr(self, name)}")

    def build(self, model: PointModel) -> None:
        """Puts the networks in, and the second grouping before the blocks."""
        backbone = model.backbone
        backbone.entry_transform = PositionalPrompts(self, backbone)
        for i, block in enumerate(backbone.blocks):
            backbone.blocks[i] = PPTBlock(block, backbone.entry_transform)
        prompts = "prompt_mean" if backbone.entry_transform.before_patches else "suffix_mean"
        model.set_pooling(("cls", "patch_mean", prompts))
