"""Point-BERT's dense head against its drawing: one-hot categories, every edge written out, 1x1 convolutions."""

import pytest
import torch
import torch.nn.functional as F

from pointpeft import create_model
from pointpeft.heads import DenseFeatures, UpsamplingHead
from pointpeft.ops import furthest_point_sample, interpolate

WIDTH, CLASSES, CATEGORIES, GROUPS = 24, 7, 5, 9


def inputs(points=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.randn(3, points, 3, generator=generator, dtype=torch.float64)
    levels = torch.randn(3, GROUPS, 3 * WIDTH, generator=generator, dtype=torch.float64)
    centers = torch.stack([cloud[i] for cloud, i in zip(xyz, furthest_point_sample(xyz, GROUPS), strict=True)])
    return xyz, DenseFeatures(centers, levels, cloud=xyz), torch.randint(CATEGORIES, (3,), generator=generator)


def propagate(part, points, own, support, features):
    """[B, n, own] beside what is interpolated, then convolution, BatchNorm and ReLU twice. -> [B, n, C]"""
    x = torch.cat([own, interpolate(points, support, features, 3)], -1).transpose(1, 2)
    for conv, norm in zip(part.convs, part.norms, strict=True):
        x = F.relu(norm(F.conv1d(x, conv.weight, conv.bias)))
    return x.transpose(1, 2)


def edges(layer, points, x, support, h):
    """max over the four nearest of LeakyReLU(GroupNorm(W [h_j - x ; x])). -> [B, n, C']"""
    idx = torch.cdist(points, support, compute_mode="donot_use_mm_for_euclid_dist").topk(4, largest=False).indices
    near = torch.stack([cloud[i] for cloud, i in zip(h, idx, strict=True)])  # [B, n, 4, C]
    own = x[:, :, None].expand_as(near)
    return F.leaky_relu(layer(torch.cat([near - own, own], -1).permute(0, 3, 1, 2)), 0.2).amax(-1).transpose(1, 2)


def definition(head, points, features, category):
    first, second, third = features.levels.chunk(3, -1)
    centers, cloud = features.centers, features.cloud

    def sample(count):
        return torch.stack([p[i] for p, i in zip(cloud, furthest_point_sample(cloud, count), strict=True)])

    few, many = sample(2 * GROUPS), sample(4 * GROUPS)
    x2 = propagate(head.propagation_2, few, few, centers, second)
    x1 = propagate(head.propagation_1, many, many, centers, first)
    y = edges(head.upsampling_2.layer1, few, x2, centers, third)
    x2 = edges(head.upsampling_2.layer2, few, y, few, y)
    y = edges(head.upsampling_1.layer1, many, x1, few, x2)
    x1 = edges(head.upsampling_1.layer2, many, y, many, y)
    own = points
    if head.num_categories:
        hot = F.one_hot(category, head.num_categories).to(points.dtype)[:, None].expand(-1, points.shape[1], -1)
        own = torch.cat([hot, points], -1)
    x = propagate(head.propagation_0, points, own, many, x1).transpose(1, 2)
    return head.conv2(head.dropout(F.relu(head.bn1(head.conv1(x))))).transpose(1, 2)


@pytest.mark.parametrize("categories", [0, CATEGORIES])
@pytest.mark.parametrize("training", [True, False])
def test_the_head_is_its_drawing(categories, training):
    torch.manual_seed(1)
    head = UpsamplingHead(WIDTH, CLASSES, categories, dropout=0.0, dtype=torch.float64).train(training)
    xyz, features, category = inputs()
    points = xyz[:, :50] + 0.01  # others than the cloud's own
    logits = head(points, features, category)
    assert logits.shape == (3, 50, CLASSES)
    torch.testing.assert_close(logits, definition(head, points, features, category))


@pytest.mark.parametrize("points", [1, 12, 30])
def test_a_cloud_of_fewer_points_than_a_level_has_all_of_them_in_it(points):
    head = UpsamplingHead(WIDTH, CLASSES, dtype=torch.float64).eval()
    xyz, features, _ = inputs()
    few = features._replace(cloud=xyz[:, :points], centers=xyz[:, :1], levels=features.levels[:, :1])
    assert torch.isfinite(head(xyz, few)).all()


def test_the_width_is_checked():
    with pytest.raises(ValueError, match="width must be a multiple of 4 for this head's norms, got 6"):
        UpsamplingHead(6, 2)


def test_point_bert_has_this_head_and_no_cloud_depends_on_its_neighbours_in_the_batch():
    small = {"width": 32, "depth": 3, "num_heads": 2, "num_groups": 16, "group_size": 8, "embed_width": 8}
    torch.manual_seed(0)
    model = create_model("point_bert_tiny", "dapt", CLASSES, task="semantic_segmentation", **small).eval()
    assert isinstance(model.head, UpsamplingHead)
    xyz = inputs(80)[0].float()
    together = model(xyz)
    for i in range(3):
        torch.testing.assert_close(model(xyz[i : i + 1])[0], together[i])
    torch.testing.assert_close(model(xyz, query=xyz[:, 10:13]), together[:, 10:13])
