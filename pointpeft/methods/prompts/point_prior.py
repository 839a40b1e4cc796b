"""State shared by the blocks of Point-PEFT: the memory bank, and attention inside neighbourhoods of tokens."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from pointpeft.backbones.context import Context
from pointpeft.methods.base import factory_kwargs
from pointpeft.ops import furthest_point_sample, gather, knn

if TYPE_CHECKING:
    from pointpeft.methods.prompts.point_peft import PointPEFT, PointPEFTBlock


class Bottleneck(nn.Module):
    """W_up Dropout(QuickGELU(W_down x)) with QuickGELU(x) = x sigmoid(1.702 x)."""

    def __init__(self, width: int, rank: int, dropout: float, factory: dict[str, Any]):
        super().__init__()
        self.ln1 = nn.Linear(width, rank, **factory)
        self.ln2 = nn.Linear(rank, width, **factory)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.ln1, self.ln2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]"""
        h = self.ln1(x)
        return self.ln2(self.dropout(h * torch.sigmoid(1.702 * h)))


class LocalAttention(nn.Module):
    """Self-attention of low rank R inside each neighbourhood, scaled by R^-1/2 whatever the heads."""

    def __init__(self, width: int, rank: int, num_heads: int, factory: dict[str, Any]):
        super().__init__()
        if rank % num_heads:
            raise ValueError(f"attention_rank must be a multiple of the backbone's num_heads = {num_heads}, got {rank}")
        self.rank, self.num_heads = rank, num_heads
        self.qkv = nn.Linear(width, 3 * rank, bias=False, **factory)
        self.proj = nn.Linear(rank, width, **factory)

    def forward(self, x: Tensor, idx: Tensor) -> Tensor:
        """Rows [N, C] and those of each neighbourhood, int64 [B, G, S] -> [B, G, S, C]"""
        b, g, s = idx.shape
        # Mapped row by row, then gathered: a row stands in many neighbourhoods.
        qkv = self.qkv(x)[idx].view(b * g, s, 3, self.num_heads, self.rank // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, scale=self.rank**-0.5)
        return self.proj(y.transpose(1, 2).reshape(b, g, s, self.rank))


@dataclass
class Neighborhoods:
    """Coordinates of a cloud's rows (prompts and patches, or patches alone), and their neighbourhoods.

    Attributes:
        targets: Where the patch tokens are taken to be. [B, G, 3]
        centers: Centres of the neighbourhoods. [B, G2, 3]
        rows: Rows of each neighbourhood, by position in the batch. int64, [B, G2, S2]
        center_rows: Rows of the centres. int64, [B, G2]
    """

    targets: Tensor
    centers: Tensor
    rows: Tensor
    center_rows: Tensor


class PointPrior(nn.Module):
    """Shared by all blocks: the memory bank, the prompts' coordinates, and the attention of the neighbourhoods."""

    def __init__(self, method: "PointPEFT", backbone: Any):
        super().__init__()
        config, factory = backbone.config, factory_kwargs(backbone)
        self.method, self.config = method, config
        self.prompt_cor = nn.Parameter(torch.empty(method.num_prompts, 3, **factory))
        self.attn1 = LocalAttention(config.width, method.attention_rank, config.num_heads, factory)
        self.norm3 = nn.LayerNorm(config.width, **factory)
        nn.init.trunc_normal_(self.prompt_cor, std=0.02)
        self.register_buffer("memory_bank", torch.zeros(config.width, method.bank_size, **factory))
        if not method.published:
            self.keep_frozen(backbone.norm)
        self.frozen: tuple[PointPEFTBlock, ...] = ()

    def keep_frozen(self, norm: nn.Module) -> None:
        """Copies the final norm, which trains: the frozen features need the one of the pre-training."""
        for name, parameter in norm.named_parameters():
            self.register_buffer(f"norm_{name.replace('.', '_')}", parameter.detach().clone())
        self._norm = (norm,)  # in a tuple, so that it has one name only

    @torch.no_grad()
    def frozen_feature(self, patches: Tensor, pos: Tensor) -> Tensor:
        """The feature of each cloud by the pre-trained weights: the maximum over its tokens. [B, G, C] -> [B, C]"""
        for block in self.frozen:
            patches = block.frozen_forward(patches + pos)
        norm = self._norm[0]
        pretrained = {name: getattr(self, f"norm_{name.replace('.', '_')}") for name, _ in norm.named_parameters()}
        return functional_call(norm, pretrained, (patches,)).amax(1)

    def retrieve(self, f: Tensor) -> Tensor:
        """Parameter-free attention over the bank: [f, g, V] of s = (f/|f|) M, V = M[:, topK s], g = softmax(topK s) V.

        Where the bank has fewer than K columns, the cloud's own direction stands for the missing ones.
        [B, C] -> [B, P, C]
        """
        k = self.method.num_prompts - 2
        bank = self.memory_bank
        direction = F.normalize(f, dim=-1)
        if bank.shape[1] < k:
            own_direction = direction[:, None].expand(-1, k - bank.shape[1], -1)
            values = torch.cat([bank.T.expand(f.shape[0], -1, -1), own_direction], 1)
            scores = (values @ direction[:, :, None])[..., 0]
        else:
            scores, idx = (direction @ bank).topk(k)
            values = bank.T[idx]
        return torch.cat([f[:, None], scores.softmax(-1)[:, None] @ values, values], 1)

    def neighborhoods(self, ctx: Context, prompted: bool) -> Neighborhoods:
        """Half as many centres of half as many neighbours as the tokenizer's, among prompts and patches."""
        batch, groups = ctx.centers.shape[:2]
        points = ctx.centers
        if prompted:
            prompts = self.prompt_cor.expand(batch, -1, -1).to(points.dtype)
            if self.method.published:  # the published code samples centres anew, and forgets which rows they are
                cloud = torch.cat([prompts, ctx.xyz], 1)
                points = gather(cloud, self.sample(cloud, groups))
            else:
                points = torch.cat([prompts, points], 1)
        center_idx = self.sample(points, groups // 2)
        centers = gather(points, center_idx)
        idx = knn(centers.detach(), points.detach(), self.config.group_size // 2)[1]
        first = torch.arange(batch, device=idx.device) * points.shape[1]  # each cloud's first row in the batch
        targets = points if self.method.published else ctx.centers
        return Neighborhoods(targets, centers, idx + first[:, None, None], center_idx + first[:, None])

    def sample(self, points: Tensor, count: int) -> Tensor:
        """Farthest points with the backbone's rule. [B, N, 3] -> int64 [B, count]"""
        return furthest_point_sample(points.detach(), count, min_sq_norm=self.config.min_sq_norm)
