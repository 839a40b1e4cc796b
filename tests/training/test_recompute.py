import pytest
import torch
from torch import nn

import pointpeft
from pointpeft.training.recompute import checkpoint_blocks

SMALL = {"width": 32, "depth": 2, "num_heads": 2, "num_groups": 16, "group_size": 8}


# Blocks with dropout, with a BatchNorm, with auxiliary losses, with results that they share, with prompts of their own.
@pytest.mark.parametrize("method", ["full", "dapt", "idpt", "adapter_x", "vpt", "point_gst", "unipelt"])
def test_gradients_losses_and_statistics_are_the_same(method):
    torch.manual_seed(0)
    xyz, labels = torch.randn(4, 64, 3), torch.tensor([0, 1, 2, 0])
    model = pointpeft.create_model("point_mae_tiny", method, 3, **SMALL).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def step():
        model.load_state_dict(before)
        model.zero_grad()
        torch.manual_seed(1)
        logits = model(xyz)
        own = model.method.losses(model, xyz, labels, logits)
        loss = nn.functional.cross_entropy(logits, labels) + sum(own.values())
        loss.backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return {"loss": loss.detach(), **grads}, {name: value.clone() for name, value in model.state_dict().items()}

    plain = step()
    checkpoint_blocks(model.backbone.blocks)
    for expected, got in zip(plain, step(), strict=True):
        assert expected.keys() == got.keys()
        for name in expected:
            assert torch.equal(expected[name], got[name]), name


def test_the_insides_are_not_kept():
    torch.manual_seed(0)
    model = pointpeft.create_model("point_mae_tiny", "adaptformer", 3, **(SMALL | {"depth": 6})).train()
    xyz = torch.randn(4, 64, 3)

    def kept():
        total = 0

        def pack(tensor):
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(xyz)
        return total

    plain = kept()
    checkpoint_blocks(model.backbone.blocks)
    assert kept() < 0.6 * plain
