"""VPT: where the prompts stand, and that they are fresh in every block of the deep form."""

import pytest
import torch

from pointpeft.backbones.layers import Block
from tests.methods.tools import block_input, make, stirred


@torch.no_grad()
@pytest.mark.parametrize("placement", ["after_prefix", "end"])
def test_prompts_stand_where_they_should(placement):
    model = stirred("vpt", num_prompts=3, placement=placement)
    block = model.backbone.blocks[0]
    x, ctx = block_input(model)
    at = 1 if placement == "after_prefix" else 17
    prompts = (block.prompts + block.prompt_pos).expand(2, -1, -1)
    h = x + ctx.pos
    h = torch.cat([h[:, :at], prompts, h[:, at:]], 1)
    h = h + block.attn(block.norm1(h))
    expected = h + block.mlp(block.norm2(h))
    torch.testing.assert_close(block(x, ctx), expected, rtol=1e-4, atol=1e-4)
    assert (ctx.num_prompts, ctx.num_suffix) == ((3, 0) if placement == "after_prefix" else (0, 3))


@torch.no_grad()
@pytest.mark.parametrize("placement", ["after_prefix", "end"])
def test_deep_prompts_replace_those_before(placement):
    model = stirred("vpt", num_prompts=3, placement=placement)
    first, second = model.backbone.blocks[:2]
    x, ctx = block_input(model)
    y = first(x, ctx)
    a = second(y, ctx)
    assert a.shape[1] == ctx.pos.shape[1] == 17 + 3
    # What the first block made of its prompts is gone.
    x, ctx = block_input(model)
    y = first(x, ctx)
    ctx.split(y)[1 if placement == "after_prefix" else 3].fill_(7.0)
    torch.testing.assert_close(second(y, ctx), a, rtol=0, atol=0)


def test_shallow_prompts_are_in_the_first_block_alone():
    blocks = make("vpt", deep=False).backbone.blocks
    assert hasattr(blocks[0], "prompts")
    assert all(type(block) is Block for block in blocks[1:])


@pytest.mark.parametrize(("options", "said"), [({"num_prompts": 0}, "num_prompts"), ({"placement": "x"}, "placement")])
def test_bad_options_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        make("vpt", **options)
