"""IDPT's generators against their equations, and what it leaves alone."""

import pytest
import torch
import torch.nn.functional as F

from pointpeft import create_model, from_published
from pointpeft.backbones.edge_conv import edge_conv
from pointpeft.checkpoints import to_published
from pointpeft.methods.prompts.idpt import GENERATORS, HEADS, EdgeConvPrompt

SMALL = {"num_groups": 24, "group_size": 8, "drop_path": 0.0}


def test_the_edge_convolution_is_its_equation():
    torch.manual_seed(0)
    part = EdgeConvPrompt(6, 2, 5, {}).double().eval()
    layer = part.conv1
    layer[1].running_mean.normal_()
    x = torch.randn(2, 11, 6, dtype=torch.float64)
    idx = torch.cdist(x, x).topk(5, largest=False).indices  # [B, G, K]
    neighbours = torch.stack([cloud[i] for cloud, i in zip(x, idx, strict=True)])
    center = x[:, :, None].expand_as(neighbours)
    edges = torch.cat([neighbours - center, center], -1).permute(0, 3, 1, 2)  # [B, 2C, G, K]
    norm = layer[1]
    expected = F.batch_norm(layer[0](edges), norm.running_mean, norm.running_var, norm.weight, norm.bias)
    expected = F.leaky_relu(expected, 0.2).amax(-1).transpose(1, 2)
    torch.testing.assert_close(edge_conv(layer, x, idx), expected)


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("head", HEADS)
def test_every_generator_and_head_trains(generator, head):
    torch.manual_seed(0)
    model = create_model("point_mae_tiny", "idpt", 3, generator=generator, head=head, prompt_layer=2, **SMALL)
    model(torch.randn(4, 96, 3)).square().mean().backward()
    for name, p in model.named_parameters():
        reached = p.grad is not None and bool(p.grad.any())
        assert reached == (p.requires_grad and not model.method.is_dead(name)), name
    assert not model.get_parameter("backbone.blocks.2.prompt_pos").requires_grad


def test_blocks_before_the_prompt_are_the_backbone():
    torch.manual_seed(0)
    model = create_model("point_mae_tiny", "idpt", 3, prompt_layer=3, **SMALL).eval()
    plain = create_model("point_mae_tiny", "full", 3, **SMALL).eval()
    state = {k.replace(".block.", "."): v for k, v in model.state_dict().items() if k.startswith("backbone.")}
    plain.load_state_dict(state, strict=False)
    xyz = torch.randn(2, 96, 3)
    with torch.no_grad():
        ours, theirs = model.backbone(xyz, taps=(2, 3))[1], plain.backbone(xyz, taps=(2, 3))[1]
    assert torch.equal(ours.hidden[2], theirs.hidden[2])
    assert not torch.allclose(ours.hidden[3], theirs.hidden[3])


@pytest.mark.parametrize("generator", GENERATORS)
def test_published_files_round_trip_with_their_second_names(generator):
    torch.manual_seed(0)
    config = {
        "NAME": "PointTransformer",
        "trans_dim": 48,
        "depth": 3,
        "cls_dim": 5,
        "num_heads": 4,
        "group_size": 8,
        "num_group": 24,
        "encoder_dims": 48,
        "prompt_layer": 2,
        "prompt_module": generator,
        "cls_type": "promptcls",
    }
    options = {"generator": generator, "head": "promptcls", "prompt_layer": 2}
    sizes = {"width": 48, "depth": 3, "num_heads": 4, "num_groups": 24, "group_size": 8, "min_sq_norm": 1e-3}
    model = create_model("point_mae", "idpt", 5, **sizes, **options).eval()
    state = to_published(model)
    if generator.startswith("dgcnn"):
        assert torch.equal(state["blocks.cls.bn1.weight"], state["blocks.cls.conv1.1.weight"])
    xyz = torch.randn(2, 96, 3)
    with torch.no_grad():
        again = from_published(config, state).eval()(xyz)
        torch.testing.assert_close(again, model(xyz), rtol=1e-4, atol=1e-5)


POINTS = {"task": "part_segmentation", "num_categories": 2, **SMALL}


def test_where_points_are_classified_prompts_stand_for_the_patches_of_three_blocks():
    torch.manual_seed(0)
    model = create_model("point_mae_tiny", "idpt", 3, **POINTS).eval()
    entered, left = {}, {}
    for i, block in enumerate(model.backbone.blocks):
        inner = getattr(block, "block", block)
        inner.register_forward_pre_hook(lambda _, args, i=i: entered.update({i: args[0]}))
        inner.register_forward_hook(lambda _, args, out, i=i: left.update({i: out}))
    xyz, category = torch.randn(2, 96, 3), torch.tensor([0, 1])
    with torch.no_grad():
        features = model.forward_features(xyz, category=category)
    taps = (1, 3, 5)
    assert [entered[i].shape[1] for i in range(6)] == [25 if i in taps else 24 for i in range(6)]
    norm = model.backbone.norm
    for found, tokens in zip(features.pooled, (entered, left), strict=True):
        torch.testing.assert_close(found, torch.cat([norm(tokens[i][:, 0]) for i in taps], -1))
    torch.testing.assert_close(features.levels, torch.cat([norm(left[i][:, 1:]) for i in taps], -1))
    made = model.backbone.blocks[3].summary(left[2], None)
    torch.testing.assert_close(entered[3][:, :1], made)


@pytest.mark.parametrize("backbone", ["point_mae_tiny", "recon_tiny", "point_bert_tiny", "point_gpt_tiny"])
def test_every_parameter_of_its_form_for_points_trains(backbone):
    torch.manual_seed(0)
    model = create_model(backbone, "idpt", 3, **POINTS | ({} if "gpt" not in backbone else {"drop_path": 0.0}))
    logits = model(torch.randn(4, 96, 3), category=torch.tensor([0, 1, 0, 1]))
    logits.square().mean().backward()
    for name, p in model.named_parameters():
        # The last block's own prefix tokens reach no patch, and a class token none at all where patches look back.
        if name.startswith("backbone.") and not name.endswith(("_token", "_pos")):
            reached = p.grad is not None and bool(p.grad.any())
            assert reached == (p.requires_grad and not model.method.is_dead(name)), name
    assert model.get_parameter("backbone.blocks.1.summary_pos").grad.any()


@pytest.mark.parametrize("options", [{"prompt_layer": 2}, {"head": "promptonly"}])
def test_options_for_clouds_are_refused_for_points(options):
    with pytest.raises(ValueError, match="prompt_layer and head must be -1 and all where points are classified"):
        create_model("point_mae_tiny", "idpt", 3, **POINTS, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generator": "gnn"}, "generator must be one of"),
        ({"head": "cls"}, "head must be one of"),
        ({"k": 0}, "k must be at least 1"),
        ({"prompt_layer": 6}, "prompt_layer must be below the depth 6"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        create_model("point_mae_tiny", "idpt", 3, **SMALL, **options)


def test_training_measures_every_edge_without_its_values(generator):
    part = EdgeConvPrompt(6, 2, 5, {}).double().train()
    layer, norm = part.conv1, part.conv1[1]
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.5, -0.7, 0.3, -2.0, 1.0, 0.1]))
        norm.bias.normal_(generator=generator)
    x = torch.randn(3, 11, 6, generator=generator, dtype=torch.float64).add_(100.0).requires_grad_()
    idx = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").topk(5, largest=False).indices
    neighbours = torch.stack([cloud[i] for cloud, i in zip(x, idx, strict=True)])
    center = x[:, :, None].expand_as(neighbours)
    edges = layer[0](torch.cat([neighbours - center, center], -1).permute(0, 3, 1, 2))
    mean, var = torch.zeros(6).double(), torch.ones(6).double()
    expected = F.batch_norm(edges, mean, var, norm.weight, norm.bias, training=True)
    expected = F.leaky_relu(expected, 0.2).amax(-1).transpose(1, 2)
    actual = edge_conv(layer, x, idx)
    torch.testing.assert_close(actual, expected)
    trained, grad = [x, *layer.parameters()], torch.randn(3, 11, 6, generator=generator, dtype=torch.float64)
    for a, e in zip(*(torch.autograd.grad(y, trained, grad) for y in (actual, expected)), strict=True):
        torch.testing.assert_close(a, e)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, var)
    assert norm.num_batches_tracked == 1
