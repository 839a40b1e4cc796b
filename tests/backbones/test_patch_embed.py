"""The frozen tokenizer's fused path against its layers one by one."""

import copy

import pytest
import torch

from pointpeft.backbones.patch_embed import PatchEmbed


def pair(generator):
    """The same tokenizer twice: frozen, which takes the fused path, and trained, which takes the layers'."""
    module = PatchEmbed(24, 16)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + (0.5 if "var" in name else -0.4))
    return module.requires_grad_(False), copy.deepcopy(module).requires_grad_(True)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("second", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_frozen_gives_what_the_layers_give_and_moves_the_statistics_alike(first, second, momentum, generator):
    frozen, trained = pair(generator)
    for module in (frozen, trained):
        for norm, mode in ((module.first_conv[1], first), (module.second_conv[1], second)):
            norm.train(mode)
            norm.momentum = momentum
    for _ in range(2):
        patches = torch.randn(3, 5, 9, 3, generator=generator)
        torch.testing.assert_close(frozen(patches), trained(patches), rtol=1e-4, atol=1e-5)
    for (name, a), b in zip(frozen.named_buffers(), trained.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


def test_frozen_keeps_no_graph_and_trained_does(generator):
    frozen, trained = pair(generator)
    patches = torch.randn(2, 3, 8, 3, generator=generator)
    assert not frozen(patches).requires_grad
    assert trained(patches).requires_grad
    assert frozen(patches.requires_grad_()).requires_grad


def test_reference_backend_gives_the_same(generator, monkeypatch):
    frozen, _ = pair(generator)
    frozen.eval()
    patches = torch.randn(2, 3, 8, 3, generator=generator)
    expected = frozen(patches)
    monkeypatch.setenv("POINTPEFT_BACKEND", "reference")
    torch.testing.assert_close(frozen(patches), expected, rtol=1e-4, atol=1e-5)
