"""DyT's inference at the published size: time and FLOPs with a part of the patches in the MLPs, against all tokens.

The FLOPs are those of the linear maps; tokenizer and attention scores, which no token skips, are left out.
"""

import functools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.conftest import DEVICES
from pointpeft import create_model
from pointpeft.methods.adapters.dyt import DyTBlock

BATCH, POINTS = 8, 2048
SHARES = {"25% of the patches": 0.25, "50% of the patches": 0.5, "75% of the patches": 0.75, "all tokens": None}


@functools.cache
def _model(share, device):
    """DyT whose dispatchers keep this share of the patches; None: no token skips."""
    torch.manual_seed(0)
    model = create_model("point_mae", "dyt", 15, device=device).eval()
    for block in model.backbone.blocks:
        torch.nn.init.normal_(block.dispatcher.weight)
        torch.nn.init.normal_(block.adapter.up.weight, std=0.02)  # an adapter of zeros would do no work
        block.full = share is None
    if share is not None:
        # In one pass, block after block: the bias at which the wanted share of the logits is positive.
        def calibrate(layer, _, logit):
            offset = logit[:, 1:].quantile(1 - share)
            layer.bias.fill_(-offset)
            return logit - offset

        layers = [block.dispatcher for block in model.backbone.blocks]
        hooks = [layer.register_forward_hook(calibrate) for layer in layers]
        with torch.no_grad():
            for layer in layers:
                layer.bias.zero_()
            model(_clouds(device))
        for hook in hooks:
            hook.remove()
    return model


def _map_flops(x, weight, _bias=None, out_shape=None, **_):
    """Of frozen_linear, from the shapes [N, C] and [O, C]."""
    return 2 * x[0] * x[1] * weight[0]


def _mlp_flops(x, w1, *_, out_shape=None, **__):
    """Of frozen_mlp, from the shapes [N, C] and [H, C]."""
    return 4 * x[0] * x[1] * w1[0]


def _attention_flops(z, *_, out_shape=None, **__):
    """Of attention, from the shape [B, T, 3C]."""
    return 4 * z[0] * z[1] * z[1] * (z[2] // 3)


def _clouds(device):
    return torch.randn(BATCH, POINTS, 3, generator=torch.Generator().manual_seed(0)).to(device)


def _masked(model, xyz, monkeypatch):
    """The same logits by the definition: every token through every MLP, and the skipped ones multiplied by zero."""
    with monkeypatch.context() as patch:
        patch.setattr(DyTBlock, "dispatched_mlp", lambda block, x, mask: mask * block.mlp(block.norm2(x)))
        return model(xyz)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SHARES)
@torch.no_grad()
def bench_dyt(compare, monkeypatch, name, device):
    model, xyz = _model(SHARES[name], device), _clouds(device)
    expected = _masked(model, xyz, monkeypatch)
    rows = []
    hooks = [b.mlp.register_forward_hook(lambda m, args, out: rows.append(out.numel())) for b in model.backbone.blocks]
    ops = torch.ops.pointpeft
    flops = {ops.frozen_linear: _map_flops, ops.frozen_mlp: _mlp_flops, ops.attention: _attention_flops}
    with FlopCounterMode(display=False, custom_mapping=flops) as counter:
        model(xyz)
    for hook in hooks:
        hook.remove()
    tokens = BATCH * (1 + model.backbone.config.num_groups) * model.backbone.config.width
    compare(
        f"DyT inference {BATCH}x{POINTS}, fp32",
        lambda: model(xyz),
        lambda got: torch.allclose(got, expected, rtol=1e-3, atol=1e-3),
        device=device,
        rounds=5,
        flops=counter.get_total_flops(),
        tokens_in_mlps=sum(rows) / (tokens * len(model.backbone.blocks)),
    )
