"""AdaLoRA: updates in the form of a singular value decomposition, whose ranks compete for a shrinking budget."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointpeft.backbones.layers import linear
from pointpeft.methods.base import PREFIX_TOKENS, Method, factory_kwargs, register_method
from pointpeft.model import PointModel
from pointpeft.weights.publication import Publication

STD = 0.02  # of P and Q at the start
TARGETS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


class SVDLinear(nn.Module):
    """(W + s P diag(λ) Q) x, with λ = 0 at the start."""

    def __init__(self, layer: nn.Linear, rank: int, scale: float):
        super().__init__()
        factory = factory_kwargs(layer)
        self.base_layer = layer
        self.scale = scale
        self.p = nn.Parameter(torch.empty(layer.out_features, rank, **factory))
        self.lam = nn.Parameter(torch.zeros(rank, **factory))
        self.q = nn.Parameter(torch.empty(rank, layer.in_features, **factory))
        nn.init.normal_(self.p, std=STD)
        nn.init.normal_(self.q, std=STD)
        for name, factor in self.triplets().items():
            self.register_buffer(f"importance_{name}", torch.zeros_like(factor, requires_grad=False))
            self.register_buffer(f"uncertainty_{name}", torch.zeros_like(factor, requires_grad=False))

    def triplets(self) -> dict[str, nn.Parameter]:
        """P, λ and Q by name."""
        return {"p": self.p, "lam": self.lam, "q": self.q}

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C']"""
        return linear(self.base_layer, x) + F.linear(F.linear(x, self.q) * (self.scale * self.lam), self.p)

    def unorthogonality(self) -> Tensor:
        """|PᵀP - I|² + |QQᵀ - I|²."""
        identity = torch.eye(len(self.lam), device=self.lam.device, dtype=self.lam.dtype)
        return (self.p.T @ self.p - identity).square().sum() + (self.q @ self.q.T - identity).square().sum()

    @torch.no_grad()
    def observe(self, beta: float) -> None:
        """Moves the running means of |w ∂L/∂w| and of its deviation."""
        for name, factor in self.triplets().items():
            importance = self.get_buffer(f"importance_{name}")
            uncertainty = self.get_buffer(f"uncertainty_{name}")
            sensitivity = torch.zeros_like(factor) if factor.grad is None else (factor * factor.grad).abs()
            importance.lerp_(sensitivity, 1 - beta)
            uncertainty.lerp_((sensitivity - importance).abs(), 1 - beta)

    def scores(self) -> Tensor:
        """Importance of each triplet: that of λ_i, and the means over column i of P and row i of Q. [R]"""
        p, lam, q = (
            self.get_buffer(f"importance_{n}") * self.get_buffer(f"uncertainty_{n}") for n in ("p", "lam", "q")
        )
        return lam + p.mean(0) + q.mean(1)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The plain layer with the update in its weight."""
        self.base_layer.weight += self.scale * (self.p * self.lam) @ self.q
        return self.base_layer


@register_method
@dataclass(frozen=True)
class AdaLoRA(Method):
    """Low-rank updates that share a budget of ranks, given to the layers where they matter.

    After every step of training, the triplets (column of P, λ, row of Q) are scored; at every `interval` steps the λ of
    all but the best are set to zero, as many as the budget has: `rank` per layer until `warmup_steps`, then falling by
    a cubic curve to `target_rank` per layer within `decay_steps`. Lengths are in steps, since a method knows of no end
    of training. Scores and the count of steps are buffers, so that a stopped run goes on with them; they triple what
    an adapter on disk takes.

    Attributes:
        rank: R of each layer at the start.
        target_rank: Its mean over the layers at the end.
        alpha: The updates are scaled by alpha / rank.
        warmup_steps: Before the budget falls.
        decay_steps: While it falls.
        interval: Steps between allocations.
        beta: Of the running means.
        orthogonality: Weight of the loss that keeps P and Q orthogonal.
        targets: Which linear maps of a block, by the end of their name.

    Source: Zhang et al., "Adaptive budget allocation for parameter-efficient fine-tuning", ICLR 2023, Eqs. 3-12.
    """

    rank: int = 12
    target_rank: int = 8
    alpha: float = 24
    warmup_steps: int = 100
    decay_steps: int = 500
    interval: int = 10
    beta: float = 0.85
    orthogonality: float = 0.1
    targets: tuple[str, ...] = TARGETS

    trains = (PREFIX_TOKENS,)
    mergeable = True
    publication = Publication(renames=((r"\.base_layer\.(weight|bias)$", r".\1"),))

    def __post_init__(self) -> None:
        for name, minimum in (("target_rank", 1), ("warmup_steps", 0), ("decay_steps", 1), ("interval", 1)):
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {getattr(self, name)}")
        if self.rank < self.target_rank:
            raise ValueError(f"rank must be at least target_rank = {self.target_rank}, got {self.rank}")
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta must be at least 0 and below 1, got {self.beta}")

    def build(self, model: PointModel) -> None:
        """Puts the updates around their layers."""
        blocks = model.backbone.blocks
        linear = {name: module for name, module in blocks.named_modules() if isinstance(module, nn.Linear)}
        known = {name.partition(".")[2] for name in linear}
        if not self.targets or any(target not in known for target in self.targets):
            raise ValueError(f"targets must be among {', '.join(sorted(known))}, got {self.targets}")
        for name, layer in linear.items():
            if name.partition(".")[2] in self.targets:
                _put(blocks, name, SVDLinear(layer, self.rank, self.alpha / self.rank))
        model.backbone.register_buffer(
            "steps", torch.zeros((), dtype=torch.int64, device=factory_kwargs(blocks)["device"])
        )

    def losses(
        self,
        model: PointModel,
        xyz: Tensor,
        labels: Tensor,
        logits: Tensor,
        class_weights: Tensor | None = None,
        **inputs: Tensor,
    ) -> dict[str, Tensor]:
        """The mean over the layers of what keeps P and Q from being orthogonal."""
        loss = torch.stack([layer.unorthogonality() for layer in _layers(model).values()]).mean()
        return {**model.aux_losses(), "orthogonality": self.orthogonality * loss}

    def budget(self, step: int) -> float:
        """Ranks per layer at a step."""
        left = 1 - min(1.0, max(0, step - self.warmup_steps) / self.decay_steps)
        return self.target_rank + (self.rank - self.target_rank) * left**3

    @torch.no_grad()
    def after_step(self, model: PointModel) -> None:
        """Scores the triplets by their gradients and takes the least important ones out."""
        layers = list(_layers(model).values())
        for layer in layers:
            layer.observe(self.beta)
        model.backbone.steps += 1
        step = int(model.backbone.steps)
        if step <= self.warmup_steps or step % self.interval:
            return
        scores = torch.stack([layer.scores() for layer in layers])  # [layers, R]
        is_kept = torch.zeros_like(scores).flatten()
        is_kept[scores.flatten().topk(round(self.budget(step) * len(layers))).indices] = 1
        for layer, mask in zip(layers, is_kept.view_as(scores), strict=True):
            layer.lam.mul_(mask)

    def fold(self, model: PointModel) -> None:
        """Adds the updates to the weights and puts the plain layers back."""
        for name, layer in _layers(model).items():
            _put(model.backbone.blocks, name, layer.merged())


def _layers(model: PointModel) -> dict[str, SVDLinear]:
    return {name: layer for name, layer in model.backbone.blocks.named_modules() if isinstance(layer, SVDLinear)}


def _put(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(root.get_submodule(parent), last, module)
