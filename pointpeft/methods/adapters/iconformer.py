"""iConFormer: an adapter whose kernel is made from the cloud itself, mixing each token with its neighbours."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointpeft.backbones.context import Context
from pointpeft.backbones.layers import Block
from pointpeft.methods.base import PREFIX_TOKENS, Method, factory_kwargs, register_method
from pointpeft.methods.morton import along_curve, cells_of, sorted_by
from pointpeft.model import PointModel
from pointpeft.ops import gather, knn

FORMS = ("knn", "curve")


class InstanceConditionedAdapter(nn.Module):
    """u = W_down x, D = iCoN(mean u), V_i = Σ_j D_j ⊙ u_{j(i)}, y = s · W_up GELU(V).

    On an image the published kernel slides over a grid; a cloud has none. In the form "knn" its taps j(i) are the K
    nearest patches of patch i, ordered by distance; in the form "curve" those up to K // 2 places before and behind i
    along a Z-order curve through the centres, with zeros beyond its ends. Neither depends on the order of the tokens.
    Tokens that are not patches pass the kernel by.
    """

    def __init__(
        self, width: int, rank: int, neighbors: int, scale: float, form: str, *, device: Any = None, dtype: Any = None
    ):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.neighbors, self.scale, self.form = neighbors, scale, form
        self.down = nn.Linear(width, rank, **factory)
        self.kernel = nn.Linear(rank, rank * neighbors, **factory)
        self.up = nn.Linear(rank, width, **factory)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for parameter in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(parameter)

    def nearest(self, patches: Tensor, kernel: Tensor, ctx: Context) -> Tensor:
        """The kernel over the K nearest patches. [B, G, R], [B, 1, K, R] -> [B, G, R]"""
        idx = ctx.cached(("knn of centers", self.neighbors), lambda: knn(ctx.centers, ctx.centers, self.neighbors)[1])
        return (kernel * gather(patches, idx)).sum(2)

    def along_curve(self, patches: Tensor, kernel: Tensor, ctx: Context) -> Tensor:
        """The kernel over a row of patches. [B, G, R], [B, 1, K, R] -> [B, G, R]"""
        order = ctx.cached("curve of centers", lambda: along_curve(cells_of(ctx.centers.float())))
        row = F.pad(sorted_by(patches, order), (0, 0, self.neighbors // 2, self.neighbors // 2))
        windows = row.unfold(1, self.neighbors, 1)  # [B, G, R, K]
        return sorted_by((kernel.mT * windows).sum(-1), order.argsort(-1))

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """[B, T, C] -> [B, T, C]"""
        u = self.down(x)
        prefix, prompts, patches, suffix = ctx.split(u)
        kernel = self.kernel(patches.mean(1)).view(x.shape[0], 1, self.neighbors, -1)  # [B, 1, K, R]
        mix = self.nearest if self.form == "knn" else self.along_curve
        v = torch.cat([prefix, prompts, mix(patches, kernel, ctx), suffix], 1)
        return self.scale * self.up(F.gelu(v))


class IConFormerBlock(Block):
    """A frozen block with the adapter beside its MLP."""

    def __init__(self, block: Block, rank: int, neighbors: int, scale: float, form: str):
        self.adopt(block)
        self.adapter = InstanceConditionedAdapter(block.width, rank, neighbors, scale, form, **factory_kwargs(block))

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """[B, T, C] -> [B, T, C]"""
        x = self.attention_half(x, ctx)
        x, u = self.mlp_inputs(x)
        return x + self.drop_path(self.mlp(u) + self.adapter(u, ctx))


@register_method
@dataclass(frozen=True)
class IConFormer(Method):
    """Instance-conditioned adapters, their kernels over neighbouring patches.

    No code was published, and the readable parts leave open the kernel's generator and size and the ranks. The defaults
    are a choice: 414 720 parameters beside the head at the published size, 1.88 %, within the published 1.6 to 2.8 %.

    Attributes:
        rank: R, width of the bottleneck (a choice).
        neighbors: K, taps of the kernel, the patch itself among them (a choice).
        scale: s (a choice).
        form: "knn" for the nearest patches, or "curve" for those along a Z-order curve, a depth-wise convolution of one
            dimension with odd K (a choice).

    Source: Jo et al., "iConFormer: dynamic parameter-efficient tuning with input-conditioned adaptation", 2024.
    """

    rank: int = 32
    neighbors: int = 9
    scale: float = 1.0
    form: str = "knn"

    trains = (PREFIX_TOKENS,)

    def __post_init__(self) -> None:
        for name in ("rank", "neighbors"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, got {self.form!r}")
        if self.form == "curve" and self.neighbors % 2 == 0:
            raise ValueError(f"neighbors must be odd for form='curve', got {self.neighbors}")

    def build(self, model: PointModel) -> None:
        """Puts the adapters in.

        Raises:
            ValueError: There are fewer patches than neighbours.
        """
        backbone = model.backbone
        if self.neighbors > backbone.config.num_groups:
            groups = backbone.config.num_groups
            raise ValueError(f"neighbors must be at most num_groups = {groups}, got {self.neighbors}")
        for i, block in enumerate(backbone.blocks):
            backbone.blocks[i] = IConFormerBlock(block, self.rank, self.neighbors, self.scale, self.form)
