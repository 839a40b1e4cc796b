import re
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pointpeft.ops import PatchEmbedWeights, fold_batch_norm, patch_embed, patch_embed_reference
from tests.conftest import cut

module = sys.modules["pointpeft.ops.frozen.patch_embed"]
# batch, groups, points a group, widths
SHAPES = [
    (2, 5, 7, (20, 33, 40, 30)),
    (1, 3, 32, (128, 256, 512, 384)),
    (3, 1, 1, (16, 16, 16, 16)),
    (1, 70, 33, (8, 8, 9, 3)),
]
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 3e-2,
    torch.float16: 4e-3,
}  # rounding of the type


def weights(widths, generator, dtype=torch.float32, device="cpu"):
    h1, h2, h3, c = widths
    shapes = [(h1, 3), (h1,), (h2, h1), (h2,), (h3, 2 * h2), (h3,), (c, h3), (c,)]
    draw = (torch.randn(s, generator=generator, dtype=torch.float64) / s[-1] ** 0.5 for s in shapes)
    return PatchEmbedWeights(*(t.to(device, dtype) for t in draw))


def case(shape, generator, dtype=torch.float32, device="cpu"):
    batch, groups, size, widths = shape
    patches = torch.randn(batch, groups, size, 3, generator=generator, dtype=torch.float64).to(device, dtype)
    return patches, weights(widths, generator, dtype, device)


def assert_close(actual, patches, w):
    """Within the rounding of the type, relative to the largest value, of the reference in double precision."""
    expected = patch_embed_reference(patches.double(), PatchEmbedWeights(*(t.double() for t in w)))
    assert actual.dtype == patches.dtype
    assert actual.is_contiguous()
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCE[patches.dtype]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equals_the_reference(shape, dtype, device, generator):
    patches, w = case(shape, generator, dtype, device)
    assert_close(patch_embed(patches, w), patches, w)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_kernels_equal_the_reference(shape, dtype, triton_device, generator):
    patches, w = case(shape, generator, dtype, triton_device)
    assert_close(module._launch(patches, *w), patches, w)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_what_is_composed_on_cuda_equals_the_reference(shape, dtype, generator, monkeypatch):
    patches, w = case(shape, generator, dtype)
    monkeypatch.setattr(module, "COMPOSED_ROWS", 40)
    assert_close(module._composed(patches, *w), patches, w)


def test_patches_that_no_program_holds_are_composed_and_said_once(generator):
    patches, w = case((1, 2, 129, (8, 8, 9, 3)), generator, torch.bfloat16)
    with pytest.warns(RuntimeWarning, match="patch_embed of 129 points and 8 hidden channels runs in plain PyTorch"):
        assert_close(module._cuda(patches, *w), patches, w)


@pytest.mark.parametrize("function", ["_launch", "_composed"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_nan_of_a_coordinate_stays_in_the_token(function, axis, triton_device, generator):
    patches, w = case(SHAPES[0], generator, device=triton_device)
    patches[1, 3, 2, axis] = float("nan")
    tokens = getattr(module, function)(patches, *w)
    assert torch.equal(tokens.isnan(), patch_embed_reference(patches, w).isnan())
    assert tokens[1, 3].isnan().all()
    assert int(tokens.isnan().sum()) == tokens.shape[2]


def test_chunks_do_not_matter(generator, monkeypatch):
    patches, w = case((3, 7, 5, (20, 33, 40, 30)), generator)
    whole = patch_embed(patches, w)
    monkeypatch.setattr(module, "ROWS_PER_CHUNK", 11)
    torch.testing.assert_close(patch_embed(patches, w), whole, rtol=1e-5, atol=1e-6)


def test_strides_and_offsets_do_not_matter(device, generator):
    patches, w = case(SHAPES[0], generator, device=device)
    strided = PatchEmbedWeights(*(cut(t) for t in w))
    torch.testing.assert_close(patch_embed(cut(patches), strided), patch_embed(patches, w), rtol=1e-5, atol=1e-6)


def test_order_of_the_points_does_not_matter(device, generator):
    patches, w = case(SHAPES[0], generator, device=device)
    torch.testing.assert_close(patch_embed(patches.flip(2), w), patch_embed(patches, w), rtol=1e-5, atol=1e-6)


def test_folded_batch_norm_equals_the_published_layers_in_evaluation(generator):
    def conv_norm(width_in, width_out):
        norm = nn.BatchNorm1d(width_out).eval()
        for tensor in (norm.running_mean, norm.weight.data, norm.bias.data):
            tensor.normal_(generator=generator)
        norm.running_var.uniform_(0.5, 2, generator=generator)
        return nn.Conv1d(width_in, width_out, 1), norm

    def folded(conv, norm):
        stats = (norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)
        return fold_batch_norm(conv.weight.squeeze(-1), conv.bias, *stats)

    (c1, n1), (c3, n3) = conv_norm(3, 16), conv_norm(48, 40)
    c2, c4 = nn.Conv1d(16, 24, 1), nn.Conv1d(40, 12, 1)
    patches = torch.randn(2, 3, 9, 3, generator=generator)
    with torch.no_grad():
        x = c2(F.relu(n1(c1(patches.flatten(0, 1).transpose(1, 2)))))
        x = torch.cat([x.amax(2, keepdim=True).expand_as(x), x], 1)
        expected = c4(F.relu(n3(c3(x)))).amax(2).view(2, 3, 12)
        w = PatchEmbedWeights(
            *folded(c1, n1), c2.weight.squeeze(-1), c2.bias, *folded(c3, n3), c4.weight.squeeze(-1), c4.bias
        )
        torch.testing.assert_close(patch_embed(patches, w), expected, rtol=1e-4, atol=1e-5)


def test_makes_no_graph(device, generator):
    patches, w = case(SHAPES[0], generator, device=device)
    assert not patch_embed(patches.requires_grad_(), PatchEmbedWeights(*(t.requires_grad_() for t in w))).requires_grad


def test_opcheck(device, generator):
    for shape in SHAPES[:2]:
        patches, w = case(shape, generator, device=device)
        torch.library.opcheck(torch.ops.pointpeft.patch_embed, (patches, *w))
        torch.library.opcheck(torch.ops.pointpeft.patch_embed, (cut(patches), *map(cut, w)))


def test_compiles_without_graph_breaks(device, generator):
    patches, w = case(SHAPES[0], generator, device=device)
    compiled = torch.compile(lambda p: patch_embed(p, w) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(patches), patch_embed(patches, w) + 1)


def test_reference_backend_can_be_forced(monkeypatch, generator):
    patches, w = case(SHAPES[0], generator)
    monkeypatch.setenv("POINTPEFT_BACKEND", "reference")
    assert torch.equal(patch_embed(patches, w), patch_embed_reference(patches, w))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patches": torch.zeros(2, 5, 3)}, "patches must have 4 dimensions, got shape (2, 5, 3)"),
        ({"patches": torch.zeros(2, 5, 4, 2)}, "patches must have 3 entries in its last dimension"),
        ({"patches": torch.zeros(2, 5, 0, 3)}, "patches must have at least one point each, got shape (2, 5, 0, 3)"),
        (
            {"patches": torch.zeros(2, 5, 4, 3, dtype=torch.float64)},
            "w1 is torch.float32, but patches is torch.float64",
        ),
        ({"w3": torch.zeros(40, 65)}, "w3 must have shape (40, 66), got (40, 65)"),
        ({"b4": torch.zeros(1)}, "b4 must have shape (30,), got (1,)"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bad_input_names_the_argument(change, message, backend, monkeypatch, generator):
    monkeypatch.setenv("POINTPEFT_BACKEND", backend)
    patches, w = case(SHAPES[0], generator)
    call = {"patches": patches} | w._asdict() | change
    with pytest.raises(ValueError, match=re.escape(message)):
        patch_embed(call.pop("patches"), PatchEmbedWeights(**call))


def test_an_empty_batch_gives_an_empty_result(device, generator):
    _, w = case(SHAPES[0], generator, device=device)
    assert patch_embed(torch.zeros(0, 5, 7, 3, device=device), w).shape == (0, 5, 30)
