"""The tokenizer whose first half alone trains against the one that trains wholly."""

import copy

import pytest
import torch

from pointpeft.backbones.patch_embed import PatchEmbed


def pair(generator, dtype=torch.float64):
    """The same tokenizer twice: first half trained, and both halves."""
    whole = PatchEmbed(24, 16, dtype=dtype)
    with torch.no_grad():
        for name, tensor in [*whole.named_parameters(), *whole.named_buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + (0.5 if "var" in name else -0.4))
        whole.second_conv[1].weight[::3] *= -1
    half = copy.deepcopy(whole)
    half.second_conv.requires_grad_(False)
    return half, whole


def first_half(module):
    return [p for p in module.first_conv.parameters()]


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_tokens_gradients_and_statistics_are_those_of_the_layers(mode, momentum, generator):
    half, whole = pair(generator)
    for module in (half, whole):
        module.second_conv[1].train(mode)
        module.second_conv[1].momentum = momentum
    for _ in range(2):
        patches = torch.randn(3, 5, 9, 3, generator=generator, dtype=torch.float64)
        grad = torch.randn(3, 5, 24, generator=generator, dtype=torch.float64)
        tokens, expected = half(patches), whole(patches)
        torch.testing.assert_close(tokens, expected)
        got = torch.autograd.grad(tokens, first_half(half), grad)
        for a, b in zip(got, torch.autograd.grad(expected, first_half(whole), grad), strict=True):
            torch.testing.assert_close(a, b)
    for (name, a), b in zip(half.named_buffers(), whole.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_autocast_gives_tokens_of_its_type_and_close_gradients(device, generator):
    half, whole = (module.to(device) for module in pair(generator, torch.float32))
    patches = torch.randn(3, 5, 9, 3, generator=generator).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        tokens = half(patches)
    assert tokens.dtype == torch.bfloat16
    torch.testing.assert_close(tokens.float(), whole(patches), rtol=5e-2, atol=1e-1)
    got = torch.autograd.grad(tokens.float().square().sum(), first_half(half))
    expected = torch.autograd.grad(whole(patches).square().sum(), first_half(whole))
    a, b = (torch.cat([g.flatten() for g in grads]) for grads in (got, expected))
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.98


def test_it_keeps_no_wide_layer(generator):
    half, whole = pair(generator)
    patches = torch.randn(3, 5, 32, 3, generator=generator, dtype=torch.float64)

    def kept(module):
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.setdefault(t.untyped_storage().data_ptr(), t), lambda t: t
        ):
            module(patches)
        own = {p.untyped_storage().data_ptr() for p in module.parameters()}
        return {pointer: t for pointer, t in sizes.items() if pointer not in own}

    rows = patches.shape[:3].numel()
    assert any(t.numel() == rows * 64 for t in kept(whole).values())
    assert not any(t.numel() == rows * 64 for t in kept(half).values())


def test_a_step_compiles(generator):
    half, _ = pair(generator, torch.float32)
    patches = torch.randn(2, 3, 8, 3, generator=generator)
    expected = torch.autograd.grad(half(patches).square().sum(), first_half(half))
    compiled = torch.compile(half, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(patches).square().sum(), first_half(half)), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_second_derivative_is_an_error_that_names_it(generator):
    half, _ = pair(generator)
    half.eval()
    patches = torch.randn(2, 3, 8, 3, generator=generator, dtype=torch.float64)
    first = torch.autograd.grad(half(patches).square().sum(), first_half(half), create_graph=True)
    with pytest.raises(RuntimeError, match="frozen_end can be differentiated once, not twice"):
        torch.autograd.grad(sum(g.square().sum() for g in first), first_half(half))
