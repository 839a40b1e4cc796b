"""PeterRec: model patches in series and in parallel."""

import pytest
import torch
import torch.nn.functional as F

from tests.methods.tools import block_input, make, stirred


def psi(patch, x, residual=True):
    y = F.gelu(x @ patch.down.weight.T + patch.down.bias) @ patch.up.weight.T + patch.up.bias
    return x + y if residual else y


@torch.no_grad()
@pytest.mark.parametrize(("insertion", "residual"), [("serial", True), ("parallel", True), ("parallel", False)])
def test_a_block_is_its_equation(insertion, residual):
    model = stirred("peterrec", insertion=insertion, residual=residual, noise=0.1)
    block = model.backbone.blocks[0]
    x, ctx = block_input(model)
    h = x + ctx.pos
    for norm, layer, patch in ((block.norm1, block.attn, block.patch_attn), (block.norm2, block.mlp, block.patch_mlp)):
        u = norm(h)
        c = layer(u)
        h = h + (psi(patch, c) if insertion == "serial" else c + psi(patch, u, residual))
    torch.testing.assert_close(block(x, ctx), h, rtol=1e-4, atol=1e-4)


def test_the_second_norm_trains_on_demand():
    assert not make("peterrec").backbone.blocks[0].norm2.weight.requires_grad
    assert make("peterrec", train_norm2=True).backbone.blocks[0].norm2.weight.requires_grad


@pytest.mark.parametrize(
    ("options", "said"),
    [({"insertion": "x"}, "insertion"), ({"rank": 0}, "rank"), ({"residual": False}, "residual must be True")],
)
def test_bad_options_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        make("peterrec", **options)
