"""From patches of points to tokens: a small PointNet per group."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointpeft.backbones.frozen_end import frozen_end
from pointpeft.backbones.plain import is_plain
from pointpeft.ops import PatchEmbedWeights, fold_batch_norm, patch_embed, patch_embed_statistics
from pointpeft.ops.core.library import use_fused_reference

PUBLISHED_WIDTH = 128  # H of every published checkpoint


class PatchEmbed(nn.Module):
    """Two point-wise MLPs, each followed by a maximum over a group's points; the second also sees the first maximum.

    Args:
        width: C, of the tokens.
        hidden: H, of the first layer; the others have 2H and 4H.

    Attributes:
        published_order: Sums in the order of the published code. Sums in another order differ by rounding alone, but
            where two points nearly tie for a maximum that decides which of them the gradient of a trained tokenizer
            reaches. Slower: the second layer then reads the maximum again for every point.

    Source: Qi et al., "PointNet", CVPR 2017, as used by Point-BERT (CVPR 2022) and Point-MAE (ECCV 2022).
    """

    def __init__(self, width: int, hidden: int = PUBLISHED_WIDTH, *, device: Any = None, dtype: Any = None):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.width = width
        self.hidden = hidden
        self.published_order = False
        self.first_conv = nn.Sequential(
            nn.Conv1d(3, hidden, 1, **factory),
            nn.BatchNorm1d(hidden, **factory),
            nn.ReLU(),
            nn.Conv1d(hidden, 2 * hidden, 1, **factory),
        )
        self.second_conv = nn.Sequential(
            nn.Conv1d(4 * hidden, 4 * hidden, 1, **factory),
            nn.BatchNorm1d(4 * hidden, **factory),
            nn.ReLU(),
            nn.Conv1d(4 * hidden, width, 1, **factory),
        )

    @property
    def last_layer(self) -> nn.Linear | nn.Conv1d:
        """The layer whose output, or its maximum, the tokens are."""
        return _parts(self.second_conv)[-1]

    @property
    def ends_in_maximum(self) -> bool:
        """Whether a maximum over points follows `last_layer`, which only an increasing map may pass."""
        return True

    def forward(self, patches: Tensor) -> Tensor:
        """Embeds each patch.

        Args:
            patches: Points relative to their centre. [B, G, S, 3]

        Returns:
            Tokens. [B, G, C]
        """
        batch, groups, size, _ = patches.shape
        h = self.hidden
        by_layers = use_fused_reference(patches) or not self._is_pointwise()
        if not (by_layers or self._differentiates(patches) or self._synced()):
            return self._frozen(patches)
        if self.published_order or by_layers:
            x = self.first_conv(patches.reshape(-1, size, 3).transpose(1, 2))  # [BG, 2H, S]
            x = torch.cat([x.max(2, keepdim=True).values.expand(-1, -1, size), x], 1)
            return self.second_conv(x).max(2).values.view(batch, groups, self.width)
        # A convolution of kernel 1 is a linear map; points as rows save the transposes. The second layer reads
        # [maximum, point]: its first half is the same for all points of a patch, so it is applied once per patch.
        conv, norm, last = _parts(self.first_conv)
        x = F.relu(norm(_linear(patches.reshape(-1, 3), conv)))  # [BGS, H]
        x = _linear(x, last)  # [BGS, 2H]
        if self._ends_frozen():
            return self._frozen_end(x, size).view(batch, groups, self.width)
        top = x.view(-1, size, 2 * h).max(1).values  # [BG, 2H]
        conv, norm, last = _parts(self.second_conv)
        weight = conv.weight.squeeze(-1)
        per_patch = F.linear(top, weight[:, : 2 * h], conv.bias)  # [BG, 4H]
        x = F.linear(x, weight[:, 2 * h :]).view(-1, size, 4 * h) + per_patch[:, None]
        x = F.relu(norm(x.view(-1, 4 * h)))  # [BGS, 4H]
        return _linear(x, last).view(batch, groups, size, self.width).max(2).values

    def _is_pointwise(self) -> bool:
        """Whether the layers are the plain ones, which may read points as rows or be computed together."""
        return all(_is_pointwise(stack) for stack in (self.first_conv, self.second_conv))

    def _differentiates(self, patches: Tensor) -> bool:
        return torch.is_grad_enabled() and (patches.requires_grad or any(p.requires_grad for p in self.parameters()))

    def _ends_frozen(self) -> bool:
        """Whether the first half alone trains."""
        return not any(p.requires_grad for p in self.second_conv.parameters()) and not self._synced()

    def _frozen_end(self, x: Tensor, size: int) -> Tensor:
        """The second half, frozen, of points of the first. [BGS, 2H] -> [BG, C]"""
        conv, norm, last = _parts(self.second_conv)
        w3, b3, w4, b4 = (t.to(x.dtype) for c in (conv, last) for t in (c.weight.squeeze(-1), c.bias))
        affine, used = (norm.weight, norm.bias), (norm.running_mean, norm.running_var)
        tokens, mean, rstd = frozen_end(x, size, w3, b3, w4, b4, *affine, *used, norm.training, norm.eps)
        if norm.training:
            track_statistics(norm, mean, rstd**-2 - norm.eps, x.shape[0])
        return tokens

    def _synced(self) -> bool:
        """Whether a BatchNorm measures more than this process's patches: the fused statistics know the plain one."""
        norms = (self.first_conv[1], self.second_conv[1])
        return any(norm.training and type(norm) is not nn.BatchNorm1d for norm in norms)

    @torch.no_grad()
    def _frozen(self, patches: Tensor) -> Tensor:
        """As `forward`, without a graph; BatchNorm in training measures the batch as ever."""
        conv1, norm1, conv2 = _parts(self.first_conv)
        conv3, norm3, conv4 = _parts(self.second_conv)
        w1, b1, w2, b2, w3, b3, w4, b4 = (
            t for conv in (conv1, conv2, conv3, conv4) for t in (conv.weight.squeeze(-1), conv.bias)
        )
        used1, used3 = (norm1.running_mean, norm1.running_var), (norm3.running_mean, norm3.running_var)
        if norm1.training or norm3.training:
            measured = patch_embed_statistics(
                patches, w1, b1, norm1.weight, norm1.bias, norm1.eps, w2, b2, w3, b3, None if norm1.training else used1
            )
            if norm1.training:
                used1 = _measured(norm1, measured.mean1, measured.var1, patches)
            if norm3.training:
                used3 = _measured(norm3, measured.mean3, measured.var3, patches)
        w1, b1 = fold_batch_norm(w1, b1, *used1, norm1.weight, norm1.bias, norm1.eps)
        w3, b3 = fold_batch_norm(w3, b3, *used3, norm3.weight, norm3.bias, norm3.eps)
        return patch_embed(patches, PatchEmbedWeights(w1, b1, w2, b2, w3, b3, w4, b4))


def _is_pointwise(stack: nn.Sequential) -> bool:
    """Whether `stack` is exactly a (1x1 convolution, BatchNorm, ReLU, 1x1 convolution), each as its class says."""
    if not is_plain(stack, nn.Sequential) or len(stack) != 4:
        return False
    conv, norm, relu, last = stack
    known = type(norm) in (nn.BatchNorm1d, nn.SyncBatchNorm) or getattr(type(norm), "takes_rows", False)
    maps = all(is_plain(layer, nn.Conv1d) and layer.bias is not None for layer in (conv, last))
    return maps and is_plain(relu, nn.ReLU) and known and is_row_norm(norm)


def is_row_norm(norm: Any) -> bool:
    """Whether a BatchNorm of a known class is as that class says, with weight, bias and running statistics."""
    return is_plain(norm, type(norm)) and norm.affine and norm.running_mean is not None


def _parts(stack: nn.Sequential) -> Any:
    """The layers with weights of (conv, norm, ReLU, conv); torch knows no types of the parts of a container."""
    conv, norm, _, last = stack
    return conv, norm, last


def track_statistics(norm: Any, mean: Tensor, var: Tensor, count: int) -> None:
    """Updates the running statistics of `norm` as its forward would in training.

    Args:
        mean: Of the batch. [C]
        var: Of the batch, biased. [C]
        count: Over how many values.
    """
    if not norm.track_running_stats:
        return
    norm.num_batches_tracked += 1
    rate = norm.momentum if norm.momentum is not None else 1 / norm.num_batches_tracked
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), rate)
    norm.running_var.lerp_((var * (count / max(1, count - 1))).to(norm.running_var.dtype), rate)  # the unbiased one


def _measured(norm: nn.BatchNorm1d, mean: Tensor, var: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
    """Updates the running statistics of `norm`; returns what it normalises with."""
    mean, var = mean.to(norm.weight.dtype), var.to(norm.weight.dtype)
    track_statistics(norm, mean, var, patches.shape[:3].numel())
    return mean, var


def _linear(x: Tensor, conv: nn.Conv1d) -> Tensor:
    return F.linear(x, conv.weight.squeeze(-1), conv.bias)
