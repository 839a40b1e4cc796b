"""Point-BERT's dense head: features grow from the patches to more and more points of the cloud."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointpeft.backbones.plain import is_plain
from pointpeft.heads.dense import NUM_LEVELS, DenseFeatures
from pointpeft.heads.propagation import LEAK, Propagation, activate, project
from pointpeft.ops import furthest_point_sample, gather, knn

NEIGHBORS = 4  # of a point in the graph of its level, as published
NORM_GROUPS = 4  # of the GroupNorms, as published
FINER = (2, 4)  # how many times the patches the levels between them and the points have: 256 and 512 as published


class EdgeUpsampling(nn.Module):
    """Two edge convolutions, from a coarse level to a finer one and within it.

    With h_j the coarse features, x_q the fine ones and j the nearest to q in space:

        y_q = max_j LeakyReLU(GN(W₁ [h_j - x_q ; x_q])),    z_q = max_j LeakyReLU(GN(W₂ [y_j - y_q ; y_q]))

    Args:
        width: C of both features and of the result.

    Source: the published part segmentation code of Point-BERT (CVPR 2022).
    """

    def __init__(self, width: int, *, device: Any = None, dtype: Any = None):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        hidden = NORM_GROUPS * -(-width // 3)  # 512 for 384, and a multiple of the groups for every width
        self.layer1 = _edge_layer(width, hidden, factory)
        self.layer2 = _edge_layer(hidden, width, factory)

    def forward(self, coarse: Tensor, h: Tensor, fine: Tensor, x: Tensor) -> Tensor:
        """Coordinates and features of both levels -> features of the finer one.

        Args:
            coarse: [B, M, 3]
            h: [B, M, C]
            fine: [B, Q, 3]
            x: [B, Q, C]

        Returns:
            [B, Q, C]
        """
        y = _edge_conv(self.layer1, h, x, knn(fine, coarse, min(NEIGHBORS, coarse.shape[1]))[1])
        return _edge_conv(self.layer2, y, y, knn(fine, fine, min(NEIGHBORS, fine.shape[1]))[1])


class UpsamplingHead(nn.Module):
    """Logits of points, by way of two levels of 2G and 4G points that farthest point sampling takes from the cloud.

    With F₁, F₂, F₃ the features at the patches' centres after each third of the blocks:

        f₂ = EdgeUpsampling(F₃ → propagate(F₂)) at 2G points,    f₁ = EdgeUpsampling(f₂ → propagate(F₁)) at 4G points
        logits(p) = W₂ Dropout(ReLU(BN(W₁ propagate(f₁)(p))))

    The last propagation reads the cloud's category. A cloud of fewer points than a level has all its points in it.

    Args:
        width: C of the tokens, a multiple of 4. The hidden widths are those published for 384, in proportion.
        num_classes: Number of logits.
        num_categories: Kinds of clouds, of which each cloud names its own; 0 for none, which no publication has.
        dropout: Of the hidden layer of the classifier.
        min_sq_norm: As the backbone chooses its centres, see `furthest_point_sample`.

    Source: the published part segmentation code of Point-BERT (CVPR 2022).
    """

    published_renames = (
        (r"^head\.propagation_(\d)\.convs\.", r"propagation_\1.mlp_convs."),
        (r"^head\.propagation_(\d)\.norms\.", r"propagation_\1.mlp_bns."),
        (r"^head\.upsampling_(\d)\.", r"dgcnn_pro_\1."),
        (r"^head\.(conv1|bn1|conv2)\.", r"\1."),
    )

    def __init__(
        self,
        width: int,
        num_classes: int,
        num_categories: int = 0,
        dropout: float = 0.5,
        *,
        min_sq_norm: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        if width % NORM_GROUPS:
            raise ValueError(f"width must be a multiple of {NORM_GROUPS} for this head's norms, got {width}")
        factory = {"device": device, "dtype": dtype}
        self.num_categories = num_categories
        self.min_sq_norm = min_sq_norm
        carried, last = (4 * width, width), width // 3
        self.propagation_2 = Propagation(width, carried, **factory)
        self.propagation_1 = Propagation(width, carried, **factory)
        self.propagation_0 = Propagation(width, carried, num_categories, **factory)
        self.upsampling_1 = EdgeUpsampling(width, **factory)
        self.upsampling_2 = EdgeUpsampling(width, **factory)
        self.conv1 = nn.Conv1d(width, last, 1, **factory)
        self.bn1 = nn.BatchNorm1d(last, **factory)
        self.conv2 = nn.Conv1d(last, num_classes, 1, **factory)
        self.dropout = nn.Dropout(dropout)

    def forward(self, points: Tensor, features: DenseFeatures, category: Tensor | None = None) -> Tensor:
        """Classifies points.

        Args:
            points: Coordinates, of the cloud that the features are of. [B, N, 3]
            features: Of the backbone, with the cloud.
            category: Index of each cloud's category where the head has categories. int64, [B]

        Returns:
            Logits. [B, N, num_classes]
        """
        centers, cloud = features.centers, features.cloud
        assert cloud is not None
        first, second, third = features.levels.chunk(NUM_LEVELS, -1)
        few, many = (min(times * centers.shape[1], cloud.shape[1]) for times in FINER)
        # The samples of the coarser level are the first ones of the finer level.
        fine = gather(cloud, furthest_point_sample(cloud, many, min_sq_norm=self.min_sq_norm))
        x = self.upsampling_2(centers, third, fine[:, :few], self.propagation_2(fine[:, :few], centers, second))
        x = self.upsampling_1(fine[:, :few], x, fine, self.propagation_1(fine, centers, first))
        x = self.propagation_0(points, fine, x, category)
        return project(self.conv2, self.dropout(activate(self.bn1, project(self.conv1, x))))


def _edge_layer(width: int, out: int, factory: dict[str, Any]) -> nn.Sequential:
    """A convolution over edges and its norm, under the names and shapes of published files."""
    return nn.Sequential(nn.Conv2d(2 * width, out, 1, bias=False, **factory), nn.GroupNorm(NORM_GROUPS, out, **factory))


def _edge_conv(layer: nn.Sequential, support: Tensor, x: Tensor, idx: Tensor) -> Tensor:
    """max_j LeakyReLU(GN(W [support_j - x ; x])) over neighbours j. [B, M, C], [B, Q, C], [B, Q, K] -> [B, Q, C']"""
    conv: Any = layer[0]
    if not (is_plain(layer, nn.Sequential) and is_plain(conv, nn.Conv2d) and conv.bias is None):
        x = x[:, :, None].expand(-1, -1, idx.shape[2], -1)
        edges = torch.cat([gather(support, idx) - x, x], -1).permute(0, 3, 1, 2)
        return F.leaky_relu(layer(edges), LEAK).amax(3).transpose(1, 2)
    to_offset, to_center = conv.weight.flatten(1).chunk(2, 1)
    # W [h_j - x ; x] = W' h_j + (W'' - W') x: two products per point instead of one per edge.
    edges = gather(F.linear(support, to_offset), idx) + F.linear(x, to_center - to_offset)[:, :, None]
    return F.leaky_relu(layer[1](edges.permute(0, 3, 1, 2)), LEAK).amax(3).transpose(1, 2)
