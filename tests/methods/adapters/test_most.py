"""MoST against its equations, what its released form never trains, and what depends on the batch."""

import pytest
import torch

from pointpeft.methods.adapters.most import neighbors
from tests.methods.tools import block_input, cloud, make, stirred


def test_the_matrix_is_two_block_diagonal_ones_and_a_permutation():
    monarch = stirred("most", noise=0.3, num_blocks=4).backbone.blocks[0].monarch.double()
    first, second = torch.block_diag(*monarch.first), torch.block_diag(*monarch.second)
    order = torch.arange(96).view(24, 4).T.flatten()  # P: what stands at (r, l) goes to (l, r)
    permutation = torch.eye(96, dtype=torch.float64)[order]
    dense = permutation.T @ second @ permutation @ first
    x = torch.randn(2, 5, 96, dtype=torch.float64)
    torch.testing.assert_close(monarch.multiplied(x), x @ dense.T + monarch.bias)


@torch.no_grad()
def test_the_block_is_its_equation():
    model = stirred("most", noise=0.1)
    block = model.backbone.blocks[0]
    x, ctx = block_input(model)
    found = block(x, ctx)
    monarch, k = block.monarch, 4

    def smoothed(share, f):
        out = f.clone()
        for b in range(len(f)):
            d = (ctx.centers[b][:, None] - ctx.centers[b]).square().sum(-1).sqrt().fill_diagonal_(float("inf"))
            near = d.topk(k, largest=False)
            w = 1 / (near.values + 0.05)
            w = w / w.sum(-1, keepdim=True)
            patches = f[b, 1:]
            s = (w[..., None] * (patches[near.indices] - patches[:, None])).sum(1)
            out[b, 1:] += share * s
        return out

    x = x + ctx.pos
    u = block.norm1(x)
    h = smoothed(monarch.smooth_out.share, monarch.multiplied(smoothed(monarch.smooth_in.share, u)))
    x = x + block.attn(u) + h
    x = x + block.mlp(block.norm2(x))
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_blocks_start_as_the_frozen_ones():
    model, plain = make("most"), make("linear")
    plain.backbone.load_state_dict(model.backbone.state_dict(), strict=False)
    tokens = [one.backbone(cloud())[0] for one in (model, plain)]
    torch.testing.assert_close(*tokens, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("quirks", "learns"), [("none", True), ("published", False)])
def test_the_factors_learn_in_the_papers_form_alone(quirks, learns):
    model = make("most", quirks=quirks).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3, weight_decay=0)
    monarch = model.backbone.blocks[2].monarch
    start = [p.clone() for p in (monarch.first, monarch.second)]
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(cloud(4)), torch.arange(4)).backward()
        optimizer.step()
    moved = [not torch.equal(p, before) for p, before in zip((monarch.first, monarch.second), start, strict=True)]
    assert moved == [learns, learns]


@pytest.mark.parametrize(("quirks", "independent"), [("none", True), ("published", False)])
@torch.no_grad()
def test_only_the_published_smoothing_mixes_the_clouds_of_a_batch(quirks, independent):
    model = stirred("most", noise=0.05, quirks=quirks)
    xyz = cloud(3)
    together, alone = model(xyz), torch.cat([model(one[None]) for one in xyz])
    assert torch.allclose(together, alone, rtol=1e-4, atol=1e-4) == independent


def test_the_only_patch_has_no_neighbours():
    idx, weights = neighbors(torch.randn(2, 1, 3), 4)
    assert idx.shape == weights.shape == (2, 1, 0)


def test_published_files_of_other_depths_are_refused():
    with pytest.raises(ValueError, match="depth must be 8, 16 or 24"):
        type(make("most").method).published_config({"depth": 12})


@pytest.mark.parametrize(
    ("option", "value"), [("num_blocks", 5), ("k", 0), ("fused", (2, 1)), ("fused", (9,)), ("quirks", "paper")]
)
def test_bad_options_are_named(option, value):
    with pytest.raises(ValueError, match=option):
        make("most", **{option: value})
