"""UniPELT: LoRA, prefix and adapter, each behind its gate."""

import pytest
import torch
import torch.nn.functional as F

from tests.methods.tools import block_input, make, stirred


def gate(part, h):
    return torch.sigmoid(h @ part.linear.weight.T + part.linear.bias).mean(1, keepdim=True)


@torch.no_grad()
def test_a_block_is_its_equation():
    model = stirred("unipelt", noise=0.1, num_prompts=5)
    block, encoder = model.backbone.blocks[2], model.backbone.prefix_encoder
    x, ctx = block_input(model)
    h = x + ctx.pos
    u = block.norm1(h)
    q, k, v = (u @ block.attn.qkv.weight.T).split(96, -1)
    q = q + gate(block.lora_q.gate, u) * (u @ block.lora_q.a.weight.T @ block.lora_q.b.weight.T)
    v = v + gate(block.lora_v.gate, u) * (u @ block.lora_v.a.weight.T @ block.lora_v.b.weight.T)
    both = encoder.out(torch.tanh(encoder.hidden(encoder.embedding)))  # [P, 2·L·C]
    g = gate(block.prefix_gate, u)
    k = torch.cat([g * both[:, 2 * 2 * 96 : 5 * 96], k], 1)
    v = torch.cat([g * both[:, 5 * 96 : 6 * 96], v], 1)
    q, k, v = (t.view(2, -1, 3, 32).transpose(1, 2) for t in (q, k, v))
    y = (torch.softmax(q @ k.transpose(-1, -2) / 32**0.5, -1) @ v).transpose(1, 2).reshape(2, 17, 96)
    h = h + block.attn.proj(y)
    z = block.mlp(block.norm2(h))
    a = F.relu(z @ block.adapter.down.weight.T + block.adapter.down.bias) @ block.adapter.up.weight.T
    expected = h + z + gate(block.adapter_gate, z) * (a + block.adapter.up.bias)
    torch.testing.assert_close(block(x, ctx), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_central_gate_divides_one_between_lora_and_prefix():
    model = stirred("unipelt", noise=0.1, num_prompts=5, parts=("prefix", "lora"), central_gate=True)
    block, encoder = model.backbone.blocks[0], model.backbone.prefix_encoder
    assert not any("lora_q.gate" in name or "prefix_gate" in name for name, _ in model.named_parameters())
    x, ctx = block_input(model)
    h = x + ctx.pos
    u = block.norm1(h)
    scores = F.relu(u @ block.central_gate.linear.weight.T + block.central_gate.linear.bias).mean(1)  # [B, 2]
    g = torch.softmax(scores, -1)[:, None, :]
    q, k, v = (u @ block.attn.qkv.weight.T).split(96, -1)
    q = q + g[..., :1] * (u @ block.lora_q.a.weight.T @ block.lora_q.b.weight.T)
    v = v + g[..., :1] * (u @ block.lora_v.a.weight.T @ block.lora_v.b.weight.T)
    both = encoder.out(torch.tanh(encoder.hidden(encoder.embedding)))
    k = torch.cat([g[..., 1:] * both[:, :96], k], 1)
    v = torch.cat([g[..., 1:] * both[:, 96:192], v], 1)
    q, k, v = (t.view(2, -1, 3, 32).transpose(1, 2) for t in (q, k, v))
    y = (torch.softmax(q @ k.transpose(-1, -2) / 32**0.5, -1) @ v).transpose(1, 2).reshape(2, 17, 96)
    h = h + block.attn.proj(y)
    torch.testing.assert_close(block(x, ctx), h + block.mlp(block.norm2(h)), rtol=1e-4, atol=1e-4)


def test_parts_left_out_have_no_parameters():
    names = [name for name, _ in make("unipelt", parts=("adapter", "prefix")).named_parameters()]
    assert not any("lora" in name for name in names)
    names = [name for name, _ in make("unipelt", parts=("lora",)).named_parameters()]
    assert not any("adapter" in name or "prefix_" in name for name in names)


@torch.no_grad()
def test_lora_alone_is_its_equation_without_a_prefix():
    model = stirred("unipelt", noise=0.1, parts=("lora",))
    block = model.backbone.blocks[1]
    x, ctx = block_input(model)
    h = x + ctx.pos
    u = block.norm1(h)
    q, k, v = (u @ block.attn.qkv.weight.T).split(96, -1)
    q = q + gate(block.lora_q.gate, u) * (u @ block.lora_q.a.weight.T @ block.lora_q.b.weight.T)
    v = v + gate(block.lora_v.gate, u) * (u @ block.lora_v.a.weight.T @ block.lora_v.b.weight.T)
    h = h + block.attn.proj(block.attn.attend(torch.cat([q, k, v], -1)))
    torch.testing.assert_close(block(x, ctx), h + block.mlp(block.norm2(h)), rtol=1e-4, atol=1e-4)


def test_bitfit_trains_the_biases_of_the_blocks_besides():
    def trained(**options):
        return {name for name, p in make("unipelt", **options).named_parameters() if p.requires_grad}

    own = make("bitfit").named_parameters()
    biases = {name for name, p in own if p.requires_grad and name.startswith("backbone.blocks.")}
    assert trained(bitfit=True) == trained() | biases
    assert not trained() & biases


@torch.no_grad()
def test_soft_prompts_stand_behind_the_class_token_from_the_first_block_on():
    model = stirred("unipelt", noise=0.1, soft_prompts=3)
    first, second = model.backbone.blocks[:2]
    x, ctx = block_input(model)
    y = first(x, ctx)
    given = torch.cat([x[:, :1], first.prompts.expand(2, -1, -1), x[:, 1:]], 1)
    _, again = block_input(model)
    again.pos = torch.cat([again.pos[:, :1], torch.zeros(2, 3, 96), again.pos[:, 1:]], 1)
    first.prompts = None
    torch.testing.assert_close(y, first(given, again), rtol=1e-4, atol=1e-4)
    assert ctx.num_prompts == 3
    assert second.prompts is None
    assert second(y, ctx).shape[1] == 20


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"parts": ("adapter", "bias")}, "parts must be among"),
        ({"parts": ()}, "parts must be among"),
        ({"parts": ("lora",), "central_gate": True}, "lora and prefix for central_gate"),
        ({"soft_prompts": -1}, "soft_prompts"),
        ({"rank": 0}, "rank"),
    ],
)
def test_bad_options_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        make("unipelt", **options)


@torch.no_grad()
def test_a_gate_opens_and_closes_by_its_bias():
    block = stirred("unipelt").backbone.blocks[0]
    x, _ = block_input(make("unipelt"))
    for bias, value in ((20.0, 1.0), (-20.0, 0.0)):
        block.adapter_gate.linear.weight.zero_()
        block.adapter_gate.linear.bias.fill_(bias)
        torch.testing.assert_close(block.adapter_gate(x), torch.full((2, 1, 1), value), rtol=0, atol=1e-6)


def test_four_gates_a_block_at_the_published_size():
    from pointpeft import create_model

    model = create_model("point_mae", "unipelt", 15, device="meta")
    names = [name for name, _ in model.named_parameters() if "gate" in name]
    assert sum(model.get_parameter(name).numel() for name in names) == 18_480
