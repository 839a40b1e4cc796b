"""UniPELT: LoRA, prefix and adapter, each behind its gate."""

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
