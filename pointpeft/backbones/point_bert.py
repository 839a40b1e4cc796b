"""Point-BERT's transformer: Point-MAE's with a narrower tokenizer that a linear layer widens, and a smaller head."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from pointpeft.backbones.patch_embed import PatchEmbed
from pointpeft.backbones.point_mae import PointMAE, PointMAEConfig
from pointpeft.backbones.registry import register_backbone
from pointpeft.weights.publication import Publication, YamlModel


@dataclass(frozen=True)
class PointBERTConfig(PointMAEConfig):
    """Fields of a `PointBERT`.

    Attributes:
        encoder_width: Width of the tokenizer's output, before the linear layer that gives it C channels.
    """

    encoder_width: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder_width < 1:
            raise ValueError(f"encoder_width must be at least 1, got {self.encoder_width}")


class WidenedPatchEmbed(PatchEmbed):
    """A tokenizer whose tokens a linear layer brings to the transformer's width."""

    def __init__(self, encoder_width: int, width: int, hidden: int, *, device: Any = None, dtype: Any = None):
        super().__init__(encoder_width, hidden, device=device, dtype=dtype)
        self.reduce_dim = nn.Linear(encoder_width, width, device=device, dtype=dtype)

    @property
    def last_layer(self) -> nn.Linear:
        """The layer whose output the tokens are."""
        return self.reduce_dim

    @property
    def ends_in_maximum(self) -> bool:
        """No: the linear layer comes after the maximum."""
        return False

    def forward(self, patches: Tensor) -> Tensor:
        """[B, G, S, 3] -> [B, G, C]"""
        return self.reduce_dim(super().forward(patches))


class PointBERT(PointMAE):
    """The query encoder of Point-BERT, as it is fine-tuned.

    A pre-training holds it beside a momentum copy, a discrete autoencoder and a queue, which are left out.

    Source: Yu et al., "Point-BERT: pre-training 3D point cloud transformers with masked point modeling", CVPR 2022.
    """

    family = "point_bert"
    publication = Publication(
        models=(YamlModel("PointTransformer", is_shown_by=lambda section: section.get("encoder_dims") == 256),)
    )
    dense_prefix = True
    dense_upsampling = True
    head_options: ClassVar[dict[str, Any]] = {"hidden": (256,), "batchnorm": False}
    published_renames = ((r"^backbone\.patch_embed\.reduce_dim\.", "reduce_dim."), *PointMAE.published_renames)
    published_prefixes = ("transformer_q.",)
    published_markers = ("reduce_dim.weight",)
    ignored_keys = (r"^(transformer_k|dvae)\.", r"^(queue|queue_ptr)$", *PointMAE.ignored_keys)

    def make_patch_embed(self, config: Any, *, device: Any = None, dtype: Any = None) -> nn.Module:
        """The tokenizer: [B, G, S, 3] -> [B, G, C]."""
        return WidenedPatchEmbed(config.encoder_width, config.width, config.embed_width, device=device, dtype=dtype)

    @classmethod
    def published_tokenizer(cls, config: dict[str, Any], width: int) -> dict[str, Any]:
        """Our fields of the tokenizer from the `model:` section of a published YAML file."""
        return {"encoder_width": int(config["encoder_dims"])} if "encoder_dims" in config else {}


PointBERTConfig.backbone_type = PointBERT


@register_backbone
def point_bert() -> PointBERTConfig:
    """The published size: 12 blocks of width 384, 22 million parameters."""
    return PointBERTConfig()


@register_backbone
def point_bert_tiny() -> PointBERTConfig:
    """6 blocks of width 96, 64 patches of 32 points; small enough to train without a GPU."""
    return PointBERTConfig(
        width=96, depth=6, num_heads=3, num_groups=64, embed_width=32, encoder_width=64, drop_path=0.0
    )
