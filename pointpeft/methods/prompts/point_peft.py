"""Point-PEFT: prompts with a memory of other clouds, and an adapter that lets neighbouring tokens talk."""

import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointpeft.backbones.context import Context
from pointpeft.backbones.layers import Block, linear
from pointpeft.backbones.plain import is_plain
from pointpeft.methods.base import Method, factory_kwargs, register_method
from pointpeft.methods.prompts.memory_bank import build_memory_bank, load_memory_bank, set_memory_bank
from pointpeft.methods.prompts.point_prior import Bottleneck, PointPrior
from pointpeft.methods.token_map import CallReader
from pointpeft.model import PointModel
from pointpeft.ops import frozen_linear, interpolate
from pointpeft.weights.publication import Publication, YamlModel, modelnet_recipe, scanobjectnn_recipes

DROPOUT = 0.1  # of prompts, as published
CENTER_SHARE = PROPAGATED_SHARE = 0.3  # fixed in the published code
ADAPTER_SHARE = 0.7
QUIRKS = ("none", "published")
BANKS = ("train", "none")  # what `bank` may say beside a file
TUNED_BIASES = ("norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")


class PointPEFTBlock(Block):
    """A frozen block with prompts, an adapter behind its MLP, and the geometry-aware adapter behind both."""

    # What `keep_frozen` sets.
    frozen_norm1: Tensor
    frozen_attn_proj: Tensor
    frozen_norm2: Tensor
    frozen_mlp_fc1: Tensor
    frozen_mlp_fc2: Tensor

    def __init__(self, block: Block, prior: PointPrior, prompted: bool):
        self.adopt(block)
        method, width, factory = prior.method, block.width, factory_kwargs(block)
        self.prompted = prompted
        self._prior = (prior,)  # in a tuple, so that the shared module has one name only
        self.prompt_embeddings = nn.Parameter(torch.empty(method.num_prompts, width, **factory))
        nn.init.trunc_normal_(self.prompt_embeddings, std=0.02)
        self.ad_gate = nn.Parameter(torch.zeros(1, **factory))
        self.cp_adapter = Bottleneck(width, method.prompt_rank, method.dropout, factory)
        self.adapter = Bottleneck(width, method.rank, method.dropout, factory)
        self.adapter1 = Bottleneck(width, method.rank, method.dropout, factory)
        self.out_transform = nn.Sequential(nn.BatchNorm1d(width, **factory), nn.GELU())
        self.prompt_dropout = nn.Dropout(DROPOUT)
        if not method.published:
            self.keep_frozen()

    def keep_frozen(self) -> None:
        """Copies the biases that train, for `frozen_forward`."""
        for name in TUNED_BIASES:
            layer: Any = self.get_submodule(name)
            self.register_buffer(f"frozen_{name.replace('.', '_')}", layer.bias.detach().clone())

    def frozen_forward(self, x: Tensor) -> Tensor:
        """The block as pre-trained, its tuned biases undone. [B, G, C] -> [B, G, C]"""
        attn, mlp = self.attn, self.mlp
        u = _with_bias(self.norm1, self.frozen_norm1, x)
        y = attn.attend(linear(_pretrained(attn.qkv), u))
        x = (u if self.normed_skips[0] else x) + _with_bias(attn.proj, self.frozen_attn_proj, y)
        u = _with_bias(self.norm2, self.frozen_norm2, x)
        return self.mlp_skip(x, u) + _with_bias(
            mlp.fc2, self.frozen_mlp_fc2, F.gelu(_with_bias(mlp.fc1, self.frozen_mlp_fc1, u))
        )

    def prompts(self, ctx: Context, x: Tensor) -> Tensor:
        """Dropout(E) + z + A(z) of what the bank remembers, z. [B, P, C]"""
        prior = self._prior[0]

        def retrieve() -> Tensor:  # called by the first block, whose input is the tokenizer's output
            if prior.method.published:
                return prior.retrieve(ctx.inputs["pooled_feature"])
            return prior.retrieve(prior.frozen_feature(ctx.split(x)[2], ctx.patch_pos))

        z = ctx.cached("point_peft.memory", retrieve)
        return self.prompt_dropout(self.prompt_embeddings.expand(x.shape[0], -1, -1)) + z + self.cp_adapter(z)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """[B, T, C] -> [B, T, C]: the prompts live within the block."""
        prior, prefix = self._prior[0], ctx.num_prefix
        count = prior.method.num_prompts if self.prompted else 0
        prompts = self.prompts(ctx, x) if self.prompted else None
        x = ctx.add_pos(x)
        if prompts is not None:
            x = torch.cat([x[:, :prefix], prompts, x[:, prefix:]], 1)
        u = self.norm1(x)
        x = self.attention_skip(x, u, ctx) + self.attn(u)
        x, u = self.mlp_inputs(x)
        h = self.drop_path(self.mlp(u))
        x = x + h + ADAPTER_SHARE * self.adapter(h)

        near = ctx.cached(("point_peft.near", self.prompted), lambda: prior.neighborhoods(ctx, self.prompted))
        rows = x[:, prefix:].flatten(0, 1)  # [B (P + G), C]
        local = rows[near.rows] + self.drop_path(prior.attn1(prior.norm3(rows), near.rows))  # [B, G2, S2, C]
        top = local.max(2).values  # keeps where the maxima are, which amax finds again from all of `local`
        pooled = self.out_transform(top.transpose(1, 2)).transpose(1, 2) + CENTER_SHARE * rows[near.center_rows]
        patches = x[:, prefix + count :]
        patches = patches + PROPAGATED_SHARE * interpolate(near.targets, near.centers, pooled, "all")
        x = torch.cat([x[:, : prefix + count], patches], 1)
        x = x + self.adapter1(x)
        return torch.cat([x[:, :prefix], x[:, prefix + count :]], 1)


def _with_bias(layer: nn.Module, bias: Tensor, x: Tensor) -> Tensor:
    """`layer(x)` with another bias; a layer that is not a plain one tells its own by what it makes of zeros."""
    layer = _pretrained(layer)
    if is_plain(layer, nn.LayerNorm):
        return F.layer_norm(x, x.shape[-1:], layer.weight, bias, layer.eps)
    if is_plain(layer, nn.Linear):
        return frozen_linear(x, layer.weight, bias)
    return layer(x) + (bias - layer(torch.zeros_like(x[..., :1, :])))


def _pretrained(layer: Any) -> Any:
    """The layer within a tuner that `peft` has put around it."""
    return layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer


def _similarities(prior: PointPrior, inputs: tuple[Any, ...], result: Any) -> Tensor:
    """Cosines of a cloud's frozen feature to the columns of the bank. -> [M]"""
    return (F.normalize(inputs[0], dim=-1) @ prior.memory_bank)[0].float()


_CONFIGS = "Ivan-Tang-3D/Point-PEFT MAE/cfgs/"
_OTHER_MODEL = "the model is the one of ScanObjectNN; the file's own is not among the released models"
_YAML_KEYS = ("adapter_config", "if_half")
ADAPTER_KEYS = {"adapter_dim": "rank", "adapter_drop_path_rate": "dropout"}  # within `adapter_config`
PUBLICATION = Publication(
    models=(
        YamlModel("PointTransformer_best", keys=_YAML_KEYS, augment="scale_rotate"),
        YamlModel("PointTransformer_modelnet", keys=_YAML_KEYS, differences=(_OTHER_MODEL,)),
    ),
    recipes=(
        # Of the repository's files for ScanObjectNN only this one names the adapted model; the others tune it in full.
        *scanobjectnn_recipes(
            _CONFIGS + "finetune_{}.yaml",
            "scale_rotate",
            {"scanobjectnn_hardest": {"method_options": {"rank": 16, "dropout": 0.1}}},
        ),
        modelnet_recipe(
            _CONFIGS + "finetune_modelnet.yaml",
            method_options={"rank": 16, "dropout": 0.1},
            differences=(_OTHER_MODEL,),
        ),
    ),
    fixed_defects=("neighbours are gathered within a cloud; published from other clouds of the batch",),
    markers=(".cp_adapter.",),
    renames=(
        (r"^prior\.(attn1|norm3)\.", r"blocks.\1."),
        (r"^prior\.(prompt_cor|memory_bank)$", r"\1"),
    ),
    separate_tensors=("memory_bank",),
)


@register_method
@dataclass(frozen=True)
class PointPEFT(Method):
    """Point-prior prompts from a memory bank, a geometry-aware adapter, and bias tuning.

    The bank holds one unit column per training cloud, its pooled feature by the frozen backbone. `pointpeft finetune`
    and `compare` make it from the training clouds; elsewhere `prepare` does, or `build_memory_bank` and
    `set_memory_bank`. It is a buffer, so that adapters on disk hold it. Without a bank a cloud remembers itself alone.
    The frozen feature of a cloud is computed inside the model from the shared weights and copies of the biases that
    train.

    What the released code does otherwise, all of which `quirks="published"` repeats:
        - Neighbourhoods of prompted blocks index the rows of a batch with the stride of G rows where there are P + G,
          so that a cloud reads tokens of others: its logits depend on the batch.
        - Their centres are sampled again, from the cloud with the prompts' coordinates before it, and do not belong to
          the tokens that they are taken for.
        - The frozen feature comes from a second backbone, outside the model: the input `pooled_feature` here.
        - The bank is not in its checkpoints; give `memory_bank` to `from_published`.

    In both modes there is, as there: `ad_gate`, which nothing reads; prompts in blocks from `prompt_blocks` on, which
    nothing reads; no stochastic depth on the attention. The released radius mask is computed and never applied.

    Attributes:
        rank: Of the two adapters of a block.
        prompt_rank: Of the prompts' adapter.
        attention_rank: Of the neighbourhoods' attention; a multiple of the backbone's heads.
        num_prompts: P, the prompts of a block; P - 2 columns of the bank are recalled.
        prompt_blocks: How many blocks, from the first, have prompts.
        dropout: Inside the adapters.
        bank: Where training takes the bank from: "train" for the training clouds, "none" to leave it as it is, or a
            file that `pointpeft memory-bank` wrote.
        bank_size: Columns of the bank; set by `set_memory_bank`.
        quirks: "none", or "published" for what the released code computes.

    Source: Tang et al., "Point-PEFT: parameter-efficient fine-tuning for 3D pre-trained models", AAAI 2024.
    """

    rank: int = 16
    prompt_rank: int = 8
    attention_rank: int = 18
    num_prompts: int = 10
    prompt_blocks: int = 6
    dropout: float = 0.1
    bank: str = "train"
    bank_size: int = 0
    quirks: str = "none"

    name = "point_peft"
    needs = ("blocks", "norm")
    trains = (
        r"^backbone\.(cls_token|cls_pos|norm\.(\d+\.)?(weight|bias))$",
        r"^backbone\.blocks\.\d+\.(norm1|norm2|attn\.proj|mlp\.fc1|mlp\.fc2)\.bias$",
    )
    publication = PUBLICATION
    recall = CallReader(PointPrior, "retrieve", _similarities)

    def __post_init__(self) -> None:
        if self.quirks not in QUIRKS:
            raise ValueError(f"quirks must be one of {', '.join(QUIRKS)}, got {self.quirks!r}")
        for name, minimum in (("rank", 1), ("prompt_rank", 1), ("attention_rank", 1), ("num_prompts", 3)):
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {getattr(self, name)}")
        for name in ("prompt_blocks", "bank_size"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not self.bank:
            raise ValueError(f"bank must be {', '.join(BANKS)} or a file, got an empty name")

    @property
    def published(self) -> bool:
        """Whether the released code's defects are repeated."""
        return self.quirks == "published"

    @property
    def inputs(self) -> tuple[str, ...]:  # type: ignore[override]
        """The frozen feature of each cloud, in the published mode alone. [B, C]"""
        return ("pooled_feature",) if self.published else ()

    @classmethod
    def yaml_options(cls, section: Mapping[str, Any]) -> dict[str, Any]:
        """Our options from the `model:` section of a published YAML file."""
        adapter = section.get("adapter_config")
        if not isinstance(adapter, Mapping):
            raise ValueError(f"model.adapter_config must be a mapping, got {reprlib.repr(adapter)}")
        unknown = sorted(set(map(str, adapter)) - set(ADAPTER_KEYS))
        if unknown:
            raise ValueError(
                f"unknown keys of model.adapter_config: {', '.join(unknown)}; known: {', '.join(ADAPTER_KEYS)}"
            )
        if section.get("if_half") not in (None, False):
            raise ValueError(f"model.if_half must be one of None, False, got {reprlib.repr(section['if_half'])}")
        return {ours: adapter[theirs] for theirs, ours in ADAPTER_KEYS.items() if theirs in adapter}

    @classmethod
    def published_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Our options for published weights, with the memory bank among the keys of the `model:` section."""
        if "memory_bank" not in config:
            raise ValueError("memory_bank must be given: published Point-PEFT files do not hold it")
        options = cls.yaml_options({"adapter_config": {}, **config})
        return {"quirks": "published", "bank_size": int(config["memory_bank"].shape[1]), **options}

    def is_dead(self, name: str) -> bool:
        """Whether a parameter counts as trainable in the publication but gets no gradient."""
        late = re.search(r"\.blocks\.(\d+)\.(cp_adapter|prompt_embeddings)", name)
        return name.endswith(".ad_gate") or (late is not None and int(late[1]) >= self.prompt_blocks)

    def build(self, model: PointModel) -> None:
        """Puts the prompts and adapters in."""
        backbone = model.backbone
        backbone.prior = PointPrior(self, backbone)
        for i, block in enumerate(backbone.blocks):
            backbone.blocks[i] = PointPEFTBlock(block, backbone.prior, i < self.prompt_blocks)
        backbone.prior.frozen = tuple(backbone.blocks)

    def prepare(self, model: PointModel, clouds: Iterable[Tensor]) -> None:
        """Fills the memory bank as `bank` says.

        Raises:
            ValueError: The published mode, whose frozen features come from outside; or a file that does not fit.
        """
        if self.bank == "none":
            return
        bank = build_memory_bank(model, clouds) if self.bank == "train" else load_memory_bank(Path(self.bank), model)
        set_memory_bank(model, bank)

    def after_load(self, model: PointModel) -> None:
        """Copies the biases and the norm that train once more, as pre-trained."""
        if not self.published:
            model.backbone.prior.keep_frozen(model.backbone.norm)
            for block in model.backbone.blocks:
                block.keep_frozen()
