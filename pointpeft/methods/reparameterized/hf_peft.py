"""Methods that re-parameterise weights, through Hugging Face `peft`: LoRA, DoRA, rsLoRA, VeRA, OFT, LoHa, LoKr, HRA."""

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pointpeft.methods.base import PREFIX_TOKENS, Method, register_method
from pointpeft.model import PointModel
from pointpeft.weights.publication import Publication

ADAPTER = "default"  # the name under which peft keeps its tensors


@dataclass(frozen=True)
class HFPeft(Method):
    """A tuner of `peft` on the linear maps of the blocks.

    Attributes:
        targets: Which linear maps of a block, by the end of their name.
    """

    targets: tuple[str, ...] = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")

    packages = ("peft",)
    trains = (PREFIX_TOKENS,)
    mergeable = True
    publication = Publication(renames=((r"\.base_layer\.(weight|bias)$", r".\1"),))
    # Name of the configuration class in peft.
    tuner: ClassVar[str]

    def options(self) -> dict[str, Any]:
        """Arguments of peft's configuration beside the targets."""
        return {}

    def build(self, model: PointModel) -> None:
        """Injects the tuner into the blocks.

        Raises:
            ValueError: A target is not there, or peft refuses an option.
        """
        import peft
        from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

        blocks = model.backbone.blocks
        ends = {name.partition(".")[2] for name, module in blocks.named_modules() if isinstance(module, nn.Linear)}
        if not self.targets or any(target not in ends for target in self.targets):
            raise ValueError(f"targets must be among {', '.join(sorted(ends))}, got {self.targets}")
        pattern = r"\d+\.(" + "|".join(target.replace(".", r"\.") for target in self.targets) + ")"
        config = getattr(peft, self.tuner)(target_modules=pattern, **self.options())
        in_blocks = {id(parameter) for parameter in blocks.parameters()}
        PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](blocks, config, adapter_name=ADAPTER)
        from pointpeft.methods.reparameterized._peft_layers import lean

        for layer in blocks.modules():
            layer.__class__ = lean(layer) or type(layer)
        for parameter in blocks.parameters():  # peft leaves the choice of what trains to a wrapper of its own
            parameter.requires_grad_(id(parameter) not in in_blocks)

    def fold(self, model: PointModel) -> None:
        """Merges the tuner into the weights and puts the plain layers back."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        for parent in list(model.backbone.blocks.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, BaseTunerLayer):
                    child.merge(safe_merge=True)
                    setattr(parent, name, child.get_base_layer())


@register_method
@dataclass(frozen=True)
class LoRA(HFPeft):
    """Low-rank updates ΔW = (α / r) B A.

    Attributes:
        rank: r.
        alpha: α.
        dropout: On the input of A.

    Source: Hu et al., "LoRA", ICLR 2022.
    """

    rank: int = 8
    alpha: float = 16
    dropout: float = 0.0

    tuner = "LoraConfig"

    def options(self) -> dict[str, Any]:
        """Arguments of peft's configuration."""
        return {"r": self.rank, "lora_alpha": self.alpha, "lora_dropout": self.dropout}


@register_method
@dataclass(frozen=True)
class DoRA(LoRA):
    """LoRA on the direction of each weight column, its magnitude apart.

    Source: Liu et al., "DoRA", ICML 2024.
    """

    def options(self) -> dict[str, Any]:
        """Arguments of peft's configuration."""
        return {**super().options(), "use_dora": True}


@register_method
@dataclass(frozen=True)
class RsLoRA(LoRA):
    """LoRA with the scale α / √r.

    Source: Kalajdzievski, "A rank stabilization scaling factor for fine-tuning with LoRA", 2023.
    """

    def options(self) -> dict[str, Any]:
        """Arguments of peft's configuration."""
        return {**super().options(), "use_rslora": True}


class SharedProjections(nn.Module):
    """Keeps VeRA's random maps in the state dict once, where peft has either none of them or one per layer."""

    def __init__(self, a: Any, b: Any):
        super().__init__()
        self.a, self.b = a, b  # peft's own containers, which all layers hold too

    def get_extra_state(self) -> Tensor:
        """Both maps in one tensor. [largest input + largest output, R]"""
        return torch.cat([self.a[ADAPTER].T, self.b[ADAPTER]])

    def set_extra_state(self, state: Tensor) -> None:
        """Overwrites both maps in place."""
        a, b = self.a[ADAPTER], self.b[ADAPTER]
        if state.shape != (a.shape[1] + b.shape[0], b.shape[1]):
            raise ValueError(f"VeRA's maps must be {(a.shape[1] + b.shape[0], b.shape[1])}, got {tuple(state.shape)}")
        a.copy_(state[: a.shape[1]].T)
        b.copy_(state[a.shape[1] :])


@register_method
@dataclass(frozen=True)
class VeRA(HFPeft):
    """ΔW = diag(b) B diag(d) A with frozen random maps A and B, the same for all layers, and trained vectors b and d.

    Attributes:
        rank: R of the random maps.
        projection_seed: Which they are drawn from.

    Source: Kopiczko et al., "VeRA: vector-based random matrix adaptation", ICLR 2024.
    """

    rank: int = 64
    projection_seed: int = 0

    tuner = "VeraConfig"

    def options(self) -> dict[str, Any]:
        """Arguments of peft's configuration."""
        return {"r": self.rank, "projection_prng_key": self.projection_seed, "save_projection": False}

    def build(self, model: PointModel) -> None:
        """Injects the tuner, and puts its maps where they are saved."""
        with warnings.catch_warnings():  # peft warns that it does not save the maps: we do
            warnings.filterwarnings("ignore", message="Specified to not save vera_A")
            super().build(model)
        layer = next(module for module in model.backbone.blocks.modules() if hasattr(module, "vera_A"))
        model.backbone.vera = SharedProjections(layer.vera_A, layer.vera_B)


@register_method
@dataclass(frozen=True)
class OFT(HFPeft):
    """Orthogonal block-diagonal rotations of the weights.

    Attributes:
        block_size: Of a rotation; it must divide the inputs of every target.

    Source: Qiu et al., "Controlling text-to-image diffusion by orthogonal finetuning", NeurIPS 2023.
    """

    block_size: int = 32

    tuner = "OFTConfig"

    def options(self) -> dict[str, Any]:
        """Arguments of peft's configuration."""
        return {"oft_block_size": self.block_size}


@register_method
@dataclass(frozen=True)
class LoHa(HFPeft):
    """Updates that are the Hadamard product of two low-rank ones.

    Attributes:
        rank: Of each.
        alpha: Scale times rank.

    Source: Hyeon-Woo et al., "FedPara", ICLR 2022.
    """

    rank: int = 8
    alpha: float = 8

    tuner = "LoHaConfig"

    def options(self) -> dict[str, Any]:
        """Arguments of peft's configuration."""
        return {"r": self.rank, "alpha": self.alpha}


@register_method
@dataclass(frozen=True)
class LoKr(LoHa):
    """Updates that are a Kronecker product.

    Source: Edalati et al., "KronA", 2022; Yeh et al., "LyCORIS", ICLR 2024.
    """

    tuner = "LoKrConfig"


@register_method
@dataclass(frozen=True)
class HRA(HFPeft):
    """A chain of trained Householder reflections of the weights.

    Attributes:
        rank: Number of reflections.

    Source: Yuan et al., "Bridging the gap between low-rank and orthogonal adaptation via Householder reflection
    adaptation", NeurIPS 2024.
    """

    rank: int = 8

    tuner = "HRAConfig"

    def options(self) -> dict[str, Any]:
        """Arguments of peft's configuration."""
        return {"r": self.rank}
