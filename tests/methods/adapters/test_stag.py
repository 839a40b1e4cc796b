"""STAG's side network against its equations, and what it does not keep for the backward pass."""

import pytest
import torch
import torch.nn.functional as F

from pointpeft import create_model
from pointpeft.methods.adapters.stag import GraphAdapter
from tests.methods.tools import SMALL, cloud, make, stirred

LARGE = {"adapted": 0.75, "share_down": 3, "share_graph": 3}


def saved_bytes(method, **options):
    """Bytes that autograd keeps between a forward and its backward, each storage once; parameters not counted."""
    torch.manual_seed(0)
    model = create_model("point_mae_tiny", method, 4, **SMALL, **options).train()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(cloud(8)).sum()  # holds the graph, so that no storage is freed and its address used again
    assert loss.requires_grad
    return sum(kept.values())


def test_it_keeps_less_for_the_backward_than_dapt_and_a_quarter_of_full_fine_tuning():
    kept = saved_bytes("stag", rank=48)  # R = C / 2, as published
    assert kept < saved_bytes("dapt")
    assert kept < 0.25 * saved_bytes("full")


def test_it_keeps_less_the_fewer_blocks_it_adapts():
    kept = [saved_bytes("stag", rank=48, adapted=share) for share in (1 / 6, 0.5, 1.0)]
    assert kept[0] < 0.5 * kept[1] < 0.5 * kept[2]


@pytest.mark.parametrize(("options", "first"), [({}, 3), ({"adapted": 0.75}, 1), ({"adapted": 1.0}, 0)])
def test_no_gradient_goes_below_the_first_adapted_block(options, first):
    model = make("stag", **options).train()
    needs = []
    for block in model.backbone.blocks:
        block.block.register_forward_hook(lambda module, args, out: needs.append(out.requires_grad))
    kept = []
    head = next(model.backbone.blocks[first].block.children())  # the first thing that would keep an input
    head.register_forward_pre_hook(lambda module, args: kept.append(args[0].requires_grad))
    model(cloud(4)).sum().backward()
    assert needs == [False] * (first + 1) + [True] * (5 - first)
    assert kept == [False]


def test_the_graph_convolution_is_its_equation():
    torch.manual_seed(0)
    part = GraphAdapter(10, 6, {}).double()
    h = torch.randn(2, 9, 6, dtype=torch.float64)
    idx = torch.randint(0, 9, (2, 9, 4))
    state, d = part(h, idx)
    for b in range(2):
        for i in range(9):
            expected = part.mix((part.center(h[b, i]) + part.neighbor(h[b, idx[b, i]])).amax(0))
            torch.testing.assert_close(state[b, i], expected)
            torch.testing.assert_close(d[b, i], F.relu(part.up(expected)))


@pytest.mark.parametrize("options", [{}, LARGE, {"share_down": 2, "share_graph": 1}])
@torch.no_grad()
def test_the_side_network_is_the_published_loop(options):
    model = stirred("stag", noise=0.05, rank=16, **options)
    backbone, side = model.backbone, model.backbone.side
    xyz = cloud(3)
    patches, centers = backbone.group(xyz)
    near = torch.cdist(centers, centers).topk(8, largest=False).indices  # [B, G, 8]
    x = torch.cat([backbone.cls_token.expand(3, -1, -1), backbone.patch_embed(patches)], 1)
    pos = torch.cat([backbone.cls_pos.expand(3, -1, -1), backbone.pos_embed(centers)], 1)
    first = {1.0: 0, 0.75: 1, 0.5: 3}[model.method.adapted]
    down, graph = model.method.share_down or 6, model.method.share_graph or 6
    h = 0
    for i, wrapped in enumerate(backbone.blocks):
        block = wrapped.block
        h = h + side.down[i // down](x[:, 1:])
        x = x + pos
        x = x + block.attn(block.norm1(x))
        x = x + block.mlp(block.norm2(x))
        if i >= first:
            part = side.graph[(i - first) // graph]
            theirs = torch.stack([part.neighbor(h[b])[near[b]] for b in range(3)])  # [B, G, 8, R]
            h = part.mix((part.center(h)[:, :, None] + theirs).amax(2))
            d = F.relu(part.up(h))
            x = x + torch.cat([d.mean(1, keepdim=True), d], 1)
    torch.testing.assert_close(model(xyz), model.head(x.mean(1)), rtol=1e-3, atol=1e-3)


def test_the_class_token_stays():
    model = make("stag")
    assert not model.backbone.cls_token.requires_grad
    assert model.trainable_parameters(head=False) == sum(p.numel() for p in model.backbone.side.parameters())


@pytest.mark.parametrize(("option", "value"), [("adapted", 0.0), ("adapted", 1.5), ("k", 0), ("rank", 0)])
def test_bad_options_are_named(option, value):
    with pytest.raises(ValueError, match=option):
        make("stag", **{option: value})
