import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointpeft.ops import aggregate_neighbors, aggregate_neighbors_reference
from tests.conftest import cut

MODES = ["max", "mean", "sum", "weighted"]
# B, N, C, G, S: below, at and above the blocks of channels; a group of one; more than 256 neighbours.
SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 7, 3, 5, 4),
    (3, 33, 64, 9, 1),
    (2, 50, 131, 17, 16),
    (1, 300, 5, 3, 257),
    (2, 9, 384, 6, 8),
]
# Sums differ from the reference in their order; half and bfloat16 then round to 11 and 8 bits.
TOLERANCE = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
}


def inputs(batch, n, channels, groups, s, mode, generator, dtype=torch.float32, device="cpu"):
    features = torch.randn(batch, n, channels, generator=generator).to(device, dtype)
    idx = torch.randint(0, n, (batch, groups, s), generator=generator).to(device)
    weights = torch.randn(batch, groups, s, generator=generator).to(device, dtype) if mode == "weighted" else None
    return features, idx, weights


def gradients(op, features, idx, mode, weights, grad):
    leaves = [features.detach().clone().requires_grad_()]
    if weights is not None:
        leaves.append(weights.detach().clone().requires_grad_())
    op(leaves[0], idx, mode, *leaves[1:]).backward(grad)
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_values_and_gradients_are_those_of_the_reference(shape, mode, dtype, device, generator):
    features, idx, weights = inputs(*shape, mode, generator, dtype, device)
    out = aggregate_neighbors(features, idx, mode, weights)
    expected = aggregate_neighbors_reference(features, idx, mode, weights)
    assert out.dtype == dtype
    assert out.is_contiguous()
    if mode == "max":
        assert torch.equal(out, expected)
    torch.testing.assert_close(out, expected, **TOLERANCE[dtype])
    grad = torch.randn(out.shape, generator=generator).to(device, dtype)
    ours = gradients(aggregate_neighbors, features, idx, mode, weights, grad)
    theirs = gradients(aggregate_neighbors_reference, features, idx, mode, weights, grad)
    for a, b in zip(ours, theirs, strict=True):
        scale = max(1.0, float(b.abs().max()))
        torch.testing.assert_close(a / scale, b / scale, **TOLERANCE[dtype])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_each_vector_level_gives_the_same_bits(cpu_level, mode, dtype, generator, monkeypatch):
    features, idx, weights = inputs(2, 40, 203, 11, 9, mode, generator, dtype)
    grad = torch.randn(2, 11, 203, generator=generator).to(dtype)
    out = aggregate_neighbors(features, idx, mode, weights)
    grads = gradients(aggregate_neighbors, features, idx, mode, weights, grad)
    monkeypatch.setenv("POINTPEFT_CPU_LEVEL", "portable")
    assert torch.equal(out, aggregate_neighbors(features, idx, mode, weights))
    for a, b in zip(grads, gradients(aggregate_neighbors, features, idx, mode, weights, grad), strict=True):
        assert torch.equal(a, b)


def test_pools_the_named_rows_of_the_same_cloud(device):
    features = torch.arange(2 * 4 * 2, dtype=torch.float32, device=device).view(2, 4, 2)
    idx = torch.tensor([[[0, 2]], [[3, 3]]], device=device)
    weights = torch.tensor([[[0.5, 2.0]], [[-1.0, 3.0]]], device=device)
    assert aggregate_neighbors(features, idx).tolist() == [[[4, 5]], [[14, 15]]]
    assert aggregate_neighbors(features, idx, "mean").tolist() == [[[2, 3]], [[14, 15]]]
    assert aggregate_neighbors(features, idx, "sum").tolist() == [[[4, 6]], [[28, 30]]]
    assert aggregate_neighbors(features, idx, "weighted", weights).tolist() == [[[8, 10.5]], [[28, 30]]]


def test_the_gradient_of_a_maximum_goes_to_its_first_place(device):
    features = torch.tensor([[[1.0], [5.0], [5.0]]], device=device, requires_grad=True)
    idx = torch.tensor([[[0, 2, 1], [1, 2, 1]]], device=device)
    aggregate_neighbors(features, idx).backward(torch.tensor([[[1.0], [10.0]]], device=device))
    assert features.grad.tolist() == [[[0.0], [10.0], [1.0]]]


@pytest.mark.parametrize("channels", [1, 70])
def test_nan_wins_the_maximum_wherever_it_stands(channels, device, generator):
    features = torch.randn(1, 6, channels, generator=generator).to(device)
    features[0, 3] = torch.nan
    features[0, 4] = -torch.inf
    idx = torch.tensor([[[3, 0, 1], [0, 3, 1], [0, 1, 3], [4, 4, 4], [0, 1, 2]]], device=device)
    out = aggregate_neighbors(features, idx)
    assert torch.isnan(out[0, :3]).all()
    assert (out[0, 3] == -torch.inf).all()
    assert torch.equal(out[0, 4], features[0, :3].amax(0))


@pytest.mark.parametrize("mode", MODES)
def test_gradcheck(mode, device, generator):
    features, idx, weights = inputs(2, 6, 5, 4, 3, mode, generator, torch.float64, device)
    leaves = [leaf.requires_grad_() for leaf in (features, weights) if leaf is not None]
    torch.autograd.gradcheck(lambda f, *w: aggregate_neighbors(f, idx, mode, *w), leaves)


def test_gradcheck_with_frozen_features_or_frozen_weights(device, generator):
    features, idx, weights = inputs(2, 6, 5, 4, 3, "weighted", generator, torch.float64, device)
    torch.autograd.gradcheck(lambda w: aggregate_neighbors(features, idx, "weighted", w), [weights.requires_grad_()])
    weights = weights.detach()
    torch.autograd.gradcheck(lambda f: aggregate_neighbors(f, idx, "weighted", weights), [features.requires_grad_()])


@pytest.mark.parametrize("mode", MODES)
def test_gradients_have_the_same_bits_on_every_run_and_with_any_number_of_threads(mode, device, generator):
    features, idx, weights = inputs(3, 20, 300, 64, 16, mode, generator, device=device)
    grad = torch.randn(3, 64, 300, generator=generator).to(device)
    first = gradients(aggregate_neighbors, features, idx, mode, weights, grad)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for a, b in zip(first, gradients(aggregate_neighbors, features, idx, mode, weights, grad), strict=True):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("mode", MODES)
def test_strides_and_offsets_do_not_matter(mode, device, generator):
    features, idx, weights = inputs(3, 21, 33, 7, 5, mode, generator, device=device)
    expected = aggregate_neighbors(features, idx, mode, weights)
    strided = [None if tensor is None else cut(tensor) for tensor in (features, idx, weights)]
    assert torch.equal(aggregate_neighbors(strided[0], strided[1], mode, strided[2]), expected)
    grad = torch.randn(expected.shape, generator=generator).to(device)
    ours = gradients(aggregate_neighbors, features, idx, mode, weights, cut(grad))
    for a, b in zip(ours, gradients(aggregate_neighbors, features, idx, mode, weights, grad), strict=True):
        assert torch.equal(a, b)
    one = features[:1].expand(3, -1, -1)
    everywhere = aggregate_neighbors(one.contiguous(), idx, mode, weights)
    assert torch.equal(aggregate_neighbors(one, idx, mode, weights), everywhere)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_another_precision_keep_their_own(dtype, device, generator):
    features, idx, weights = inputs(2, 20, 8, 5, 4, "weighted", generator, dtype, device)
    weights = torch.rand(weights.shape, generator=generator).to(device).requires_grad_()
    out = aggregate_neighbors(features, idx, "weighted", weights)
    assert out.dtype == dtype
    assert torch.equal(out, aggregate_neighbors_reference(features, idx, "weighted", weights))
    out.float().sum().backward()
    assert weights.grad.dtype == torch.float32
    neighbours = features[torch.arange(2, device=device)[:, None, None], idx].float()
    torch.testing.assert_close(weights.grad, neighbours.sum(-1), rtol=1e-5, atol=1e-5)


def test_only_a_maximum_that_learns_keeps_its_places(generator):
    features, idx, _ = inputs(2, 20, 8, 5, 4, "max", generator)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        aggregate_neighbors(features, idx)
        assert kept == []
        aggregate_neighbors(features.requires_grad_(), idx)
    assert sorted((t.dtype, tuple(t.shape)) for t in kept if t.dtype != torch.int64) == [(torch.uint8, (2, 5, 8))]
    assert all(t.dtype != torch.float32 for t in kept)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(1, 20), st.integers(1, 140), st.integers(1, 9), st.integers(1, 12), st.data())
def test_any_input_gives_what_the_reference_gives(batch, n, channels, groups, s, data):
    mode = data.draw(st.sampled_from(MODES))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    # Small integers: many ties, and sums without rounding, so that values and gradients agree to the bit.
    features = torch.randint(-2, 3, (batch, n, channels), generator=generator).float()
    idx = torch.randint(0, n, (batch, groups, s), generator=generator)
    weights = torch.randint(-2, 3, idx.shape, generator=generator).float() if mode == "weighted" else None
    grad = torch.randint(-3, 4, (batch, groups, channels), generator=generator).float() * (s if mode == "mean" else 1)
    out = aggregate_neighbors(features, idx, mode, weights)
    torch.testing.assert_close(out, aggregate_neighbors_reference(features, idx, mode, weights), rtol=1e-6, atol=0)
    ours = gradients(aggregate_neighbors, features, idx, mode, weights, grad)
    theirs = gradients(aggregate_neighbors_reference, features, idx, mode, weights, grad)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("s", [3, 257])
def test_opcheck(mode, s, device, generator):
    features, idx, weights = inputs(2, 9, 12, 4, s, mode, generator, device=device)
    op = torch.ops.pointpeft.aggregate_neighbors
    torch.library.opcheck(op, (features, idx, weights, MODES.index(mode), False))
    if weights is not None:
        weights.requires_grad_()
    torch.library.opcheck(op, (features.requires_grad_(), idx, weights, MODES.index(mode), True))
    torch.library.opcheck(op, (cut(features.detach()), cut(idx), weights, MODES.index(mode), mode == "max"))


@pytest.mark.parametrize("mode", MODES)
def test_opcheck_of_the_backward(mode, device, generator):
    features, idx, weights = inputs(2, 9, 12, 4, 3, mode, generator, device=device)
    out, argmax = torch.ops.pointpeft.aggregate_neighbors(features, idx, weights, MODES.index(mode), True)
    in_order = idx.flatten(1).sort(dim=1, stable=True) if device.type == "cuda" else (None, None)
    backward = torch.ops.pointpeft.aggregate_neighbors_backward
    kept = argmax if mode == "max" else None
    torch.library.opcheck(backward, (out, idx, weights, kept, *in_order, 9, MODES.index(mode)))
    torch.library.opcheck(torch.ops.pointpeft.aggregate_neighbors_backward_weights, (out, features, idx))


@pytest.mark.parametrize("mode", MODES)
def test_compiles_without_graph_breaks(mode, device, generator):
    features, idx, weights = inputs(2, 9, 12, 4, 3, mode, generator, device=device)
    compiled = torch.compile(
        lambda f, i, w: aggregate_neighbors(f * 2, i, mode, w), fullgraph=True, backend="aot_eager"
    )
    grad = torch.randn(2, 4, 12, generator=generator).to(device)
    results = []
    for run in (compiled, lambda f, i, w: aggregate_neighbors(f * 2, i, mode, w)):
        leaf = features.clone().requires_grad_()
        out = run(leaf, idx, weights)
        out.backward(grad)
        results.append((out, leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_reference_backend_can_be_forced(monkeypatch, generator):
    features, idx, _ = inputs(2, 9, 12, 4, 3, "max", generator)
    expected = aggregate_neighbors(features, idx)
    monkeypatch.setenv("POINTPEFT_BACKEND", "reference")
    assert torch.equal(aggregate_neighbors(features, idx), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
def test_an_index_out_of_range_counts_as_zeros_on_cuda(mode, generator):
    features, idx, weights = inputs(1, 5, 8, 3, 4, mode, generator, device="cuda")
    padded = torch.cat([features, torch.zeros_like(features[:, :1])], 1)
    idx[0, 0, 1], idx[0, 1, 3] = 5, 5
    expected = aggregate_neighbors(padded, idx, mode, weights)
    idx[0, 0, 1], idx[0, 1, 3] = 10**9, -1
    assert torch.equal(aggregate_neighbors(features, idx, mode, weights), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": torch.zeros(2, 5)}, "features must have 3 dimensions, got shape (2, 5)"),
        ({"features": torch.zeros(2, 5, 3, dtype=torch.int64)}, "features must be float32"),
        ({"features": [[0.0]]}, "features must be a tensor, got list"),
        ({"idx": torch.zeros(2, 4, 3, dtype=torch.int32)}, "idx must be an int64 tensor, got torch.int32"),
        ({"idx": [[0]]}, "idx must be an int64 tensor, got list"),
        ({"idx": torch.zeros(2, 4, dtype=torch.int64)}, "idx must have shape (2, G, S) with S >= 1, got (2, 4)"),
        ({"idx": torch.zeros(3, 4, 3, dtype=torch.int64)}, "idx must have shape (2, G, S) with S >= 1, got (3, 4, 3)"),
        ({"idx": torch.zeros(2, 4, 0, dtype=torch.int64)}, "idx must have shape (2, G, S) with S >= 1, got (2, 4, 0)"),
        ({"idx": torch.zeros(2, 4, 3, dtype=torch.int64, device="meta")}, "idx is on meta, but features is on cpu"),
        ({"idx": torch.full((2, 4, 3), 5)}, "idx must be between 0 and N - 1 = 4, got 5"),
        ({"idx": torch.tensor([[0, 1, 7]] * 8).view(2, 4, 3)}, "idx must be between 0 and N - 1 = 4, got 7"),
        ({"idx": torch.full((2, 4, 3), -1)}, "idx must be between 0 and N - 1 = 4, got -1"),
        ({"features": torch.zeros(2, 0, 3)}, "idx must be between 0 and N - 1 = -1, got 0"),
        ({"mode": "min"}, "mode must be max, mean, sum or weighted, got 'min'"),
        ({"mode": "weighted"}, "weights must be given for mode 'weighted', with shape (2, 4, 3)"),
        ({"weights": torch.zeros(2, 4, 3)}, "weights must be None for mode 'max', got shape (2, 4, 3)"),
        (
            {"mode": "weighted", "weights": torch.zeros(2, 4, 2)},
            "weights must have the shape (2, 4, 3) of idx, got (2, 4, 2)",
        ),
        ({"mode": "weighted", "weights": torch.zeros(2, 4, 3).int()}, "weights must be float32"),
        (
            {"mode": "weighted", "weights": torch.zeros(2, 4, 3, device="meta")},
            "weights is on meta, but features is on cpu",
        ),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bad_input_names_the_argument(arguments, message, backend, monkeypatch):
    monkeypatch.setenv("POINTPEFT_BACKEND", backend)
    call = {"features": torch.zeros(2, 5, 3), "idx": torch.zeros(2, 4, 3, dtype=torch.int64)} | arguments
    with pytest.raises(ValueError, match=re.escape(message)):
        aggregate_neighbors(**call)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_to_pool_gives_an_empty_result_and_zero_gradients(mode, device):
    for batch, groups, channels in [(0, 4, 3), (2, 0, 3), (2, 4, 0)]:
        features = torch.zeros(batch, 5, channels, device=device, requires_grad=True)
        idx = torch.zeros(batch, groups, 2, dtype=torch.int64, device=device)
        weights = torch.zeros(batch, groups, 2, device=device) if mode == "weighted" else None
        out = aggregate_neighbors(features, idx, mode, weights)
        assert out.shape == (batch, groups, channels)
        out.sum().backward()
        assert torch.equal(features.grad, torch.zeros_like(features))
