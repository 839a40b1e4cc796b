"""Layers of Hugging Face `peft` with the same results from fewer and smaller tensors: LoRA, DoRA, HRA, LoHa and LoKr.

peft builds matrices of a weight's size and lets autograd keep them, per layer; what a layer cannot do here goes to
peft's own forward. Parameters, names and merging are peft's.
"""

import torch
import torch.nn.functional as F
from peft.tuners.hra.layer import HRALinear
from peft.tuners.loha.layer import Linear as LoHaLinear
from peft.tuners.lokr.layer import Linear as LoKrLinear
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from pointpeft.backbones.layers import linear
from pointpeft.backbones.plain import has_hooks, is_plain
from pointpeft.ops import frozen_linear


def _is_alone(layer: BaseTunerLayer, x: Tensor) -> bool:
    """Whether one unmerged adapter of x's type stands beside a frozen plain linear map."""
    base = layer.get_base_layer()
    if not (_is_single(layer) and is_plain(base, nn.Linear)):
        return False
    frozen = not any(p.requires_grad for p in base.parameters())
    return frozen and (torch.is_autocast_enabled(x.device.type) or base.weight.dtype == x.dtype)


def _is_single(layer: BaseTunerLayer) -> bool:
    return not layer.disable_adapters and not layer.merged and len(layer.active_adapters) == 1


def _are_maps(*layers: nn.Module) -> bool:
    return all(is_plain(layer, nn.Linear) for layer in layers)


class LeanLoRA(LoraLinear):
    """y = W x + b + B (c A x), with W's product as frozen maps have it, and c where the tensor is small."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., O]"""
        (name,) = self.active_adapters if len(self.active_adapters) == 1 else (None,)
        base = self.get_base_layer()
        if not _is_alone(self, x) or self.lora_bias[name]:
            return super().forward(x)
        a, b = self.lora_A[name], self.lora_B[name]
        if not _are_maps(a, b) or a.weight.dtype != base.weight.dtype:
            return super().forward(x)
        low = F.linear(self.lora_dropout[name](x), a.weight)
        return frozen_linear(x, base.weight, base.bias) + F.linear(self.scaling[name] * low, b.weight)


class LeanDoRA(LoraLinear):
    """y = s ⊙ (W + c B A) x + b with s = m / |W + c B A| per row, whose gradient leaves the norm out.

    As s ⊙ W x + b, computed again in the backward, and the product with s ⊙ c B: no output is kept.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., O]"""
        (name,) = self.active_adapters if len(self.active_adapters) == 1 else (None,)
        if not _is_alone(self, x) or not is_plain(self.lora_dropout[name], nn.Identity):
            return super().forward(x)
        if not _are_maps(self.lora_A[name], self.lora_B[name]) or has_hooks(self.lora_magnitude_vector[name]):
            return super().forward(x)
        base, c = self.get_base_layer(), self.scaling[name]
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        magnitude = self.lora_magnitude_vector[name]
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            norm = torch.addmm(base.weight, b, a, alpha=c).norm(dim=1)
        s = magnitude.weight / norm
        shift = torch.zeros_like(s) if base.bias is None else base.bias
        y = frozen_linear(x, base.weight, None, s, shift)
        return y + F.linear(F.linear(x, a), c * s[:, None] * b)


class LeanHRA(HRALinear):
    """y = W Q x + b with a product of reflections Q = (I - 2 u1 u1ᵀ) … (I - 2 ur urᵀ), applied to x instead of W.

    Source of Q = I - U T Uᵀ: Schreiber and Van Loan, "A storage-efficient WY representation for products of
    Householder transformations", 1989.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., O]"""
        (name,) = self.active_adapters if len(self.active_adapters) == 1 else (None,)
        base = self.get_base_layer()
        other = (
            is_plain(base, nn.Linear) and not torch.is_autocast_enabled(x.device.type) and base.weight.dtype != x.dtype
        )
        if not _is_single(self) or other or self.hra_apply_GS[name]:
            return super().forward(x)
        u = F.normalize(self.hra_u[name], dim=0)  # [C, R]
        z = reflected(x.to(u.dtype), u)
        # peft takes the values of the weight: it ignores hooks, and gives a weight that trains no gradient.
        return linear(base, z)


def reflected(x: Tensor, u: Tensor) -> Tensor:
    """Rows of x times ((I - 2 u1 u1ᵀ) … (I - 2 ur urᵀ))ᵀ, for unit columns u. [..., C], [C, R] -> [..., C]"""
    # T⁻¹ is upper triangular: ½ on the diagonal, uᵢᵀ uⱼ above.
    inverse = (u.T @ u).triu(1) + 0.5 * torch.eye(u.shape[1], device=u.device, dtype=u.dtype)
    inner = (x @ u).flatten(0, -2).to(u.dtype)  # x U
    inner = torch.linalg.solve_triangular(inverse.T, inner, upper=False, left=False)  # x U Tᵀ
    return x - (inner @ u.T).view(x.shape)


class _OneProduct:
    """y = (W + ΔW) x + b: one product, where peft has one with W and one with ΔW."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., O]"""
        (name,) = self.active_adapters if len(self.active_adapters) == 1 else (None,)
        drops = name is not None and (self.rank_dropout[name] or self.module_dropout[name])
        if not _is_alone(self, x) or drops:
            return super().forward(x)
        base = self.get_base_layer()
        return F.linear(x, base.weight + self.get_delta_weight(name), base.bias)


class LeanLoHa(_OneProduct, LoHaLinear):
    """LoHa with one product."""


class LeanLoKr(_OneProduct, LoKrLinear):
    """LoKr with one product."""


def lean(layer: nn.Module) -> type[nn.Module] | None:
    """The class above that computes what `layer` computes, None where peft's own is lean enough."""
    for theirs, ours in ((HRALinear, LeanHRA), (LoHaLinear, LeanLoHa), (LoKrLinear, LeanLoKr)):
        if type(layer) is theirs:
            return ours
    if type(layer) is LoraLinear:
        return LeanDoRA if any(layer.use_dora.values()) else LeanLoRA
    return None
