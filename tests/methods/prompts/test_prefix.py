"""Prefix tuning: keys and values without queries."""

import pytest
import torch

from tests.methods.tools import block_input, cloud, make, stirred


@torch.no_grad()
def test_a_block_is_its_equation():
    model = stirred("prefix", num_prompts=5)
    block = model.backbone.blocks[0]
    x, ctx = block_input(model)
    h = x + ctx.pos
    q, k, v = (block.norm1(h) @ block.attn.qkv.weight.T).split(96, -1)
    k = torch.cat([block.keys.expand(2, -1, -1), k], 1)
    v = torch.cat([block.values.expand(2, -1, -1), v], 1)
    assert k.shape[1] == 17 + 5
    q, k, v = (t.view(2, -1, 3, 32).transpose(1, 2) for t in (q, k, v))
    y = (torch.softmax(q @ k.transpose(-1, -2) / 32**0.5, -1) @ v).transpose(1, 2).reshape(2, 17, 96)
    h = h + block.attn.proj(y)
    expected = h + block.mlp(block.norm2(h))
    torch.testing.assert_close(block(x, ctx), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_one_network_makes_the_keys_and_values_of_all_blocks():
    model, plain = stirred("prefix", num_prompts=5, hidden=16), make("prefix", num_prompts=5)
    encoder = model.backbone.prefix_encoder
    both = encoder.out(torch.tanh(encoder.hidden(encoder.embedding)))  # [P, 2·L·C]
    state = plain.state_dict()
    for i in range(6):
        state[f"backbone.blocks.{i}.keys"] = both[None, :, 192 * i : 192 * i + 96]
        state[f"backbone.blocks.{i}.values"] = both[None, :, 192 * i + 96 : 192 * i + 192]
    state.update({key: value for key, value in model.state_dict().items() if key in state})
    plain.load_state_dict(state)
    torch.testing.assert_close(model(cloud()), plain(cloud()), rtol=1e-4, atol=1e-5)


def test_the_network_trains():
    model = make("prefix", num_prompts=5, hidden=16).train()
    start = {key: p.clone() for key, p in model.named_parameters() if "prefix_encoder" in key}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    torch.nn.functional.cross_entropy(model(cloud()), torch.tensor([0, 1])).backward()
    optimizer.step()
    assert len(start) == 5
    assert all(not torch.equal(model.get_parameter(key), value) for key, value in start.items())


@pytest.mark.parametrize(("option", "value"), [("num_prompts", 0), ("hidden", -1)])
def test_bad_options_are_named(option, value):
    with pytest.raises(ValueError, match=f"{option} must be at least"):
        make("prefix", **{option: value})
