import pytest
import torch
import torch.nn.functional as F

from pointpeft import create_model
from pointpeft.backbones import backbone_families
from pointpeft.heads import DenseFeatures, DenseHead, tapped_blocks
from pointpeft.ops import interpolate

SMALL = {"width": 32, "depth": 3, "num_heads": 2, "num_groups": 16, "group_size": 8, "embed_width": 8}
WIDTH, CLASSES, CATEGORIES = 24, 7, 5


def inputs(batch=3, points=40, groups=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.randn(batch, points, 3, generator=generator)
    levels = torch.randn(batch, groups, 3 * WIDTH, generator=generator)
    return xyz, DenseFeatures(xyz[:, :groups], levels), torch.randint(CATEGORIES, (batch,), generator=generator)


def definition(head, xyz, features, category):
    """The head as papers draw it: everything repeated for every point, then one convolution after another."""
    n = xyz.shape[1]

    def layer(conv, norm, x):
        return F.relu(norm(F.conv1d(x, conv.weight, conv.bias)))

    carried = interpolate(xyz, features.centers, features.levels, 3)
    x = torch.cat([xyz, carried], -1).transpose(1, 2)
    for conv, norm in zip(head.propagation.convs, head.propagation.norms, strict=True):
        x = layer(conv, norm, x)
    cloud = [features.levels.amax(1), features.levels.mean(1)]
    if features.whole is not None:
        cloud.append(features.whole)
    if head.num_categories:
        hot = F.one_hot(category, head.num_categories).float()[..., None]
        cloud.append(F.leaky_relu(head.category(hot), 0.2)[..., 0])
    x = torch.cat([x, *(c[..., None].expand(-1, -1, n) for c in cloud)], 1)
    x = head.dropout(layer(head.convs[0], head.norms[0], x))
    x = layer(head.convs[1], head.norms[1], x)
    return F.conv1d(x, head.convs[2].weight, head.convs[2].bias).transpose(1, 2)


@pytest.mark.parametrize("categories", [0, CATEGORIES])
@pytest.mark.parametrize("training", [True, False])
def test_the_head_is_its_definition(categories, training):
    torch.manual_seed(1)
    head = DenseHead(WIDTH, CLASSES, categories, dropout=0.0).train(training)
    xyz, features, category = inputs()
    logits = head(xyz, features, category)
    expected = definition(head, xyz, features, category)
    assert logits.shape == (3, 40, CLASSES)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("categories", [0, CATEGORIES])
def test_what_a_backbone_says_of_the_whole_cloud_is_read(categories):
    torch.manual_seed(1)
    head = DenseHead(WIDTH, CLASSES, categories, dropout=0.0, whole=WIDTH)
    xyz, features, category = inputs()
    features = features._replace(whole=torch.randn(3, WIDTH))
    torch.testing.assert_close(
        head(xyz, features, category), definition(head, xyz, features, category), rtol=1e-4, atol=1e-5
    )


def test_recon_gives_the_maximum_of_its_three_tokens_before_the_norm():
    torch.manual_seed(0)
    options = {**SMALL, "drop_path": 0.0}
    model = create_model("recon_tiny", "full", CLASSES, task="part_segmentation", num_categories=16, **options).eval()
    last = {}
    model.backbone.blocks[-1].register_forward_hook(lambda module, args, x: last.update(patches=x))
    model.backbone.global_blocks[-1].register_forward_hook(lambda module, args, x: last.update(tokens=x))
    xyz = inputs(2, 64)[0]
    features = model.forward_features(xyz, category=torch.tensor([3, 0]))
    assert torch.equal(features.whole, last["tokens"].amax(1))
    assert torch.equal(features.levels[..., -32:], model.backbone.norm(last["patches"]))
    published = create_model("recon", "full", 50, task="part_segmentation", num_categories=16, device="meta")
    assert published.head.convs[0].weight.shape == (512, 3776, 1)
    assert create_model("point_mae_tiny", "full", 4, task="semantic_segmentation", **SMALL)(xyz).shape == (2, 64, 4)


@pytest.mark.parametrize(("categories", "classes", "count"), [(16, 50, 5_238_706), (0, 13, 5_195_277)])
def test_parameter_counts_are_the_published_ones(categories, classes, count):
    head = DenseHead(384, classes, categories, device="meta")
    assert sum(p.numel() for p in head.parameters()) == count


PUBLISHED = [
    # backbone, hidden widths, channels that the first of them reads
    ("point_mae", (1024, 512, 256), 1024 + 2 * 1152 + 64),
    ("point_gpt", (1024, 512, 256), 1024 + 2 * 1152 + 64),
    ("point_gpt_base", (2048, 1024, 512), 2048 + 6 * 768 + 64),
    ("point_gpt_large", (2048, 1024, 512), 2048 + 6 * 1024 + 64),
]


@pytest.mark.parametrize(("name", "hidden", "seen"), PUBLISHED)
def test_widths_are_the_published_ones(name, hidden, seen):
    model = create_model(name, "full", 50, task="part_segmentation", num_categories=16, device="meta")
    convs, local = model.head.convs, model.head.propagation.convs[1]
    assert (local.out_channels, convs[0].out_channels, convs[1].out_channels) == hidden
    assert (local.in_channels, convs[0].in_channels) == (4 * model.backbone.config.width, seen)


def test_what_a_method_pools_takes_the_place_of_maximum_and_mean():
    head = DenseHead(WIDTH, CLASSES).eval()
    xyz, features, _ = inputs()
    pooled = (features.levels.amax(1), features.levels.mean(1))
    torch.testing.assert_close(head(xyz, features._replace(pooled=pooled)), head(xyz, features))
    assert not torch.allclose(head(xyz, features._replace(pooled=pooled[::-1])), head(xyz, features))


def test_the_published_point_gpt_of_24_blocks_reads_no_later_ones():
    config = {"trans_dim": 48, "depth": 24, "num_heads": 4, "num_group": 8, "group_size": 4, "encoder_dims": 48}
    fields = backbone_families()["point_gpt"].published_config(config)
    assert fields["dense_blocks"] == (3, 7, 11)
    task = {"task": "semantic_segmentation", "device": "meta"}
    assert create_model("point_gpt", "linear", 5, **task, **fields).taps == (3, 7, 11)
    assert create_model("point_gpt_large", "linear", 5, **task).taps == (7, 15, 23)
    with pytest.raises(
        ValueError, match=r"dense_blocks must be three of the 12 blocks, from 0, or empty, got \(3, 12\)"
    ):
        create_model("point_gpt", "linear", 5, **task, dense_blocks=(3, 12))


@pytest.mark.parametrize(("depth", "blocks"), [(12, (3, 7, 11)), (6, (1, 3, 5)), (2, (0, 1, 1)), (1, (0, 0, 0))])
def test_the_last_block_of_each_third_is_read(depth, blocks):
    assert tapped_blocks(depth) == blocks


def make(task="part_segmentation", **options):
    torch.manual_seed(0)
    return create_model("point_mae_tiny", "dapt", CLASSES, task=task, **SMALL, rank=4, **options).eval()


def test_points_of_a_cloud_do_not_depend_on_its_neighbours_in_the_batch():
    model = make(num_categories=CATEGORIES)
    xyz, _, category = inputs(4, 64)
    together = model(xyz, category=category)
    for i in range(4):
        torch.testing.assert_close(model(xyz[i : i + 1], category=category[i : i + 1])[0], together[i])


def test_any_points_can_be_queried():
    model = make("semantic_segmentation")
    xyz = inputs(2, 64)[0]
    every = model(xyz)
    torch.testing.assert_close(model(xyz, query=xyz[:, 10:13]), every[:, 10:13])
    assert model(xyz, query=torch.randn(2, 100, 3)).shape == (2, 100, CLASSES)


def test_the_category_matters_and_is_checked():
    model = make(num_categories=CATEGORIES)
    xyz = inputs(2, 64)[0]
    first, second = (model(xyz, category=torch.tensor([i, i])) for i in (0, 1))
    assert not torch.allclose(first, second)
    with pytest.raises(ValueError, match=r"takes the inputs \['category'\] beside xyz, got \[\]"):
        model(xyz)
    with pytest.raises(ValueError, match=r"category must be int64 of shape \(2,\), got torch.float32 \(2,\)"):
        model(xyz, category=torch.zeros(2))
    with pytest.raises(ValueError, match="query must be None for classification"):
        create_model("point_mae_tiny", "linear", 2, **SMALL).eval()(xyz, query=xyz)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "detection"}, "task must be one of classification, part_segmentation, semantic_segmentation"),
        ({"task": "classification", "num_categories": 3}, "num_categories must be at least 0, and 0 but for"),
    ],
)
def test_wrong_tasks_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        create_model("point_mae_tiny", "linear", 2, **SMALL, **options)
