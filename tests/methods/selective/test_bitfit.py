"""BitFit trains the biases of the blocks, and nothing else of them."""

import pytest
import torch

from tests.methods.tools import make, same_at_start


def test_what_trains_is_named_bias():
    model = make("bitfit")
    blocks = {name: p.requires_grad for name, p in model.backbone.blocks.named_parameters()}
    assert {name for name, trains in blocks.items() if trains} == {name for name in blocks if name.endswith(".bias")}
    assert {name.split(".", 1)[1] for name, trains in blocks.items() if trains} == {
        "norm1.bias",
        "attn.proj.bias",
        "norm2.bias",
        "mlp.fc1.bias",
        "mlp.fc2.bias",
    }


def test_outside_the_blocks_the_prefix_trains():
    names = {
        name for name, p in make("bitfit").backbone.named_parameters() if p.requires_grad and "blocks." not in name
    }
    assert names == {"cls_token", "cls_pos"}


def test_a_derived_block_trains_its_own_bias_alone():
    # With biases in qkv, as some backbones have, those train too.
    from pointpeft.backbones.layers import Attention
    from pointpeft.methods import create_method

    model = make("linear")
    model.backbone.blocks[0].attn = Attention(96, 3, qkv_bias=True)
    create_method("bitfit").attach(model)
    assert model.backbone.blocks[0].attn.qkv.bias.requires_grad
    assert not model.backbone.blocks[0].attn.qkv.weight.requires_grad


@pytest.mark.parametrize("name", ["bitfit", "ln_tuning"])
def test_it_starts_as_the_backbone(name):
    with torch.no_grad():
        assert same_at_start(name) == 0
