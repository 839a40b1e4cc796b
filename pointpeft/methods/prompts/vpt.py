"""VPT: learned prompt tokens, in the first block (shallow) or fresh in every block (deep)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pointpeft.backbones.context import Context
from pointpeft.backbones.layers import Block
from pointpeft.methods.base import PREFIX_TOKENS, Method, factory_kwargs, register_method
from pointpeft.model import PointModel
from pointpeft.weights.publication import Publication, YamlModel, modelnet_recipe, scanobjectnn_recipes


class PromptedBlock(Block):
    """A frozen block that puts its own prompts among the tokens first, instead of those of the block before."""

    def __init__(self, block: Block, num_prompts: int, placement: str, positions: bool):
        self.adopt(block)
        self.prompts = nn.Parameter(torch.empty(1, num_prompts, block.width, **factory_kwargs(block)))
        nn.init.trunc_normal_(self.prompts, std=0.02)
        self.prompt_pos: nn.Parameter | None = None
        if positions:
            self.prompt_pos = nn.Parameter(torch.empty(1, num_prompts, block.width, **factory_kwargs(block)))
            nn.init.trunc_normal_(self.prompt_pos, std=0.02)
        self.placement = placement

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """[B, T, C] -> [B, T, C]; the first prompted block adds its prompts to T."""
        if self.placement == "after_prefix":
            x = ctx.drop_prompts(x) if ctx.num_prompts else x
            x = ctx.insert_prompts(x, self.prompts, self.prompt_pos)
        else:
            x = ctx.drop_suffix(x) if ctx.num_suffix else x
            x = ctx.append_suffix(x, self.prompts, self.prompt_pos)
        return super().forward(x, ctx)


_CONFIGS = "zyh16143998882/ICCV23-IDPT cfgs/"  # its point-cloud form
PUBLICATION = Publication(
    models=(YamlModel("PointTransformerPromptDeep", augment="rotate"),),
    options={"prompt_nums": "num_prompts"},
    recipes=(
        *scanobjectnn_recipes(_CONFIGS + "finetune_{}_vpt.yaml", "rotate", method_options={"num_prompts": 10}),
        modelnet_recipe(_CONFIGS + "finetune_modelnet_vpt.yaml", method_options={"num_prompts": 10}),
        modelnet_recipe(_CONFIGS + "fewshot_vpt.yaml", "fewshot", method_options={"num_prompts": 20}),
    ),
)


@register_method
@dataclass(frozen=True)
class VPT(Method):
    """Visual prompt tuning.

    Attributes:
        num_prompts: P, prompts per prompted block.
        deep: Fresh prompts in every block; otherwise those of the first block are carried through.
        placement: "after_prefix", or "end" as in IDPT's point-cloud form.
        positions: Whether prompts have learned positions, as in IDPT's point-cloud form.

    The published trainable count of the point-cloud form, 360 463, is that of
    `VPT(deep=True, placement="end", positions=True)`.

    Source: Jia et al., "Visual prompt tuning", ECCV 2022; point-cloud form of Zha et al. (IDPT), ICCV 2023.
    """

    num_prompts: int = 10
    deep: bool = True
    placement: str = "end"
    positions: bool = True

    trains = (PREFIX_TOKENS,)
    publication = PUBLICATION

    def __post_init__(self) -> None:
        if self.num_prompts < 1:
            raise ValueError(f"num_prompts must be at least 1, got {self.num_prompts}")
        if self.placement not in ("after_prefix", "end"):
            raise ValueError(f"placement must be after_prefix or end, got {self.placement!r}")

    def build(self, model: PointModel) -> None:
        """Puts the prompts in."""
        blocks = model.backbone.blocks
        for i in range(len(blocks) if self.deep else 1):
            blocks[i] = PromptedBlock(blocks[i], self.num_prompts, self.placement, self.positions)
