"""A class for every point: features of the patches at three depths, carried to the points."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointpeft.backbones.plain import is_plain
from pointpeft.heads.propagation import LEAK, Propagation, activate, convolutions, norms, one_hot, project

NUM_LEVELS = 3
CATEGORY_WIDTH = 64  # channels that stand for a cloud's category, as published


class DenseFeatures(NamedTuple):
    """Inputs of a dense head from the backbone.

    Attributes:
        centers: Centre of each patch. [B, G, 3]
        levels: Patch tokens after each of `tapped_blocks`, normalised, side by side. [B, G, 3C]
        whole: What a backbone says of the whole cloud beside its patches, None for most. [B, C]
        pooled: What a method puts instead of the maximum and the mean of `levels`, None for most. [B, 3C] each
        cloud: The points that the tokens are made of, for heads that sample some of them. [B, N, 3]
    """

    centers: Tensor
    levels: Tensor
    whole: Tensor | None = None
    pooled: tuple[Tensor, Tensor] | None = None
    cloud: Tensor | None = None


def tapped_blocks(depth: int) -> tuple[int, ...]:
    """The blocks whose outputs are read: the last of each third, 3, 7 and 11 of 12 as published."""
    return tuple(-(-depth * part // NUM_LEVELS) - 1 for part in range(1, NUM_LEVELS + 1))


def dense_widths(width: int) -> tuple[int, int, int]:
    """Hidden widths of a `DenseHead`: those published for tokens of 384 channels, in proportion."""
    return 8 * width // 3, 4 * width // 3, 2 * width // 3


class DenseHead(nn.Module):
    """Logits of points: from the features carried to each of them, the whole cloud's, and the cloud's category.

    With F the levels at the centres, p a point and MLP, W layers of 1x1 convolution, BatchNorm and ReLU:

        local(p)  = MLP([p ; interpolate(p, centres, F)])
        logits(p) = W₃ Dropout(W₂ W₁ [local(p) ; max F ; mean F ; category])

    As published, dropout stands between W₁ and W₂. Where the published code multiplies every point by a matrix, the
    part of W₁ that reads the whole cloud, which gives all points the same summand, is multiplied once per cloud.

    Args:
        width: C of the tokens.
        num_classes: Number of logits.
        num_categories: Kinds of clouds, of which each cloud names its own; 0 for none, as in scenes.
        dropout: Of the first hidden layer of the classifier.
        whole: Channels of `DenseFeatures.whole`, which stand before the category; 0 for none.
        hidden: Channels of local(p), and after W₁ and W₂; None for `dense_widths(width)`.

    Source: the published part segmentation code of Point-MAE (ECCV 2022), and without categories that of ACT (ICLR
    2023) for S3DIS; with `whole` that of ReCon (ICML 2023); that of PointGPT (NeurIPS 2023), and of IDPT (ICCV 2023)
    with prompts pooled. Held against recorded outputs of Point-MAE's, PointGPT-S's and IDPT's.
    """

    published_renames = (
        (r"^head\.category\.", "label_conv."),
        (r"^head\.propagation\.convs\.", "propagation_0.mlp_convs."),
        (r"^head\.propagation\.norms\.", "propagation_0.mlp_bns."),
        (r"^head\.convs\.0\.", "convs1."),
        (r"^head\.convs\.1\.", "convs2."),
        (r"^head\.convs\.2\.", "convs3."),
        (r"^head\.norms\.0\.", "bns1."),
        (r"^head\.norms\.1\.", "bns2."),
    )

    def __init__(
        self,
        width: int,
        num_classes: int,
        num_categories: int = 0,
        dropout: float = 0.5,
        *,
        whole: int = 0,
        hidden: tuple[int, int, int] | None = None,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        levels = NUM_LEVELS * width
        local, first, last = hidden or dense_widths(width)
        self.num_categories = num_categories
        if num_categories:
            conv = nn.Conv1d(num_categories, CATEGORY_WIDTH, 1, bias=False, **factory)
            self.category: Any = nn.Sequential(conv, nn.BatchNorm1d(CATEGORY_WIDTH, **factory))
        self.propagation = Propagation(levels, (4 * width, local), **factory)
        in_channels = local + 2 * levels + whole + (CATEGORY_WIDTH if num_categories else 0)
        self.convs: Any = convolutions((in_channels, first, last, num_classes), factory)
        self.norms: Any = norms((first, last), factory)
        self.dropout = nn.Dropout(dropout)

    def forward(self, points: Tensor, features: DenseFeatures, category: Tensor | None = None) -> Tensor:
        """Classifies points.

        Args:
            points: Coordinates, of the cloud that the features are of. [B, N, 3]
            features: Of the backbone.
            category: Index of each cloud's category where the head has categories. int64, [B]

        Returns:
            Logits. [B, N, num_classes]
        """
        centers, levels, whole, pooled, _ = features
        x = self.propagation(points, centers, levels)  # [B, N, local]

        cloud = [*(pooled or (levels.amax(1), levels.mean(1))), *(() if whole is None else (whole,))]
        if self.num_categories:
            assert category is not None
            cloud.append(F.leaky_relu(self._of_category(category, x), LEAK))
        x = self.dropout(activate(self.norms[0], self._first(x, torch.cat(cloud, 1))))
        return project(self.convs[2], activate(self.norms[1], project(self.convs[1], x)))

    def _of_category(self, category: Tensor, like: Tensor) -> Tensor:
        """BN(W e) of the category's unit vector e. int64 [B] -> [B, CATEGORY_WIDTH]"""
        if is_plain(self.category, nn.Sequential) and is_plain(self.category[0], nn.Conv1d):
            conv, norm = self.category[0], self.category[1]
            return norm(F.embedding(category, conv.weight.squeeze(-1).T))
        return self.category(one_hot(category, self.num_categories, like)[:, :, None]).squeeze(-1)

    def _first(self, local: Tensor, cloud: Tensor) -> Tensor:
        """W₁ [local ; cloud] at every point. [B, N, local], [B, cloud] -> [B, N, hidden]"""
        conv = self.convs[0]
        if not is_plain(conv, nn.Conv1d):
            return project(conv, torch.cat([local, cloud[:, None].expand(-1, local.shape[1], -1)], -1))
        of_local, of_cloud = conv.weight.squeeze(-1).split([local.shape[-1], cloud.shape[1]], 1)
        return F.linear(local, of_local) + F.linear(cloud, of_cloud, conv.bias)[:, None]
